#include "cli/bench_modes.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <iterator>

#include "bench/numbered_calls.hpp"
#include "cli/outputs.hpp"
#include "core/child_process.hpp"
#include "core/error.hpp"
#include "core/text.hpp"
#include "cuda/device.hpp"

namespace moetune {
namespace {

// The profiler's child makes its layers anew, and a call takes ncu a few seconds at the most.
constexpr int kProfilerStartS = 180;
constexpr int kProfilerCallS = 10;

}  // namespace

std::vector<BenchLayer> choose_layers(const BenchOptions& options, const Gpu& gpu) {
  std::vector<BenchLayer> layers;
  const std::string& list = options.problem.model;
  for (std::size_t at = 0; at <= list.size();) {
    const std::size_t end = std::min(list.find(',', at), list.size());
    ProblemOptions one = options.problem;
    one.model = list.substr(at, end - at);
    at = end + 1;
    BenchLayer layer;
    layer.problem = one.make(options.token_counts.back());
    layer.name = one.shape.empty() ? layer.problem.shape.model
                                   : fmt::format("custom-{}", fmt::join(one.shape, "-"));
    if (one.tp > 1) layer.name += fmt::format("-tp{}", one.tp);
    if (one.ep > 1) layer.name += fmt::format("-ep{}", one.ep);
    layer.plans = choose_plans(options.plans, gpu, layer.problem, options.token_counts);
    layers.push_back(std::move(layer));
  }
  return layers;
}

DeviceChoice choose_real_device(const BenchOptions& options, const char* mode) {
  DeviceChoice device = choose_device(options.device);
  if (!device.gpu.offline) return device;
  const std::string reason = why_no_gpu();
  throw Error(ErrorKind::device,
              fmt::format("{} only measures: it needs a GPU{}; {}", mode,
                          reason.empty() ? "" : fmt::format(", there is none ({})", reason),
                          options.device.starts_with("offline:")
                              ? "leave out --device offline:..."
                              : "run it where there is one, with its driver"));
}

BenchRun make_run(const BenchOptions& options, const Gpu& gpu, const Problem& problem) {
  return {gpu, problem.routing, problem.seed, options.commit, command_line(), utc_now()};
}

bool wants_fp8(const BenchLayer& layer) {
  for (const ChosenPlan& chosen : layer.plans)
    for (const Step& step : chosen.plan.steps)
      if (step.point.value_or("FP8", 0) != 0) return true;
  return false;
}

std::vector<KernelCounters> CallCounters::of(int call) const {
  return call >= 0 && static_cast<std::size_t>(call) < calls.size()
             ? calls[static_cast<std::size_t>(call)]
             : std::vector<KernelCounters>{};
}

CallCounters collect_counters(const BenchOptions& options, int num_calls) {
  CallCounters counters;
  if (options.counters == "off") {
    counters.missing = "--counters off";
    return counters;
  }
  const auto variable = [](const char* name) {
    const char* value = std::getenv(name);
    return std::string(value == nullptr ? "" : value);
  };
  std::vector<std::string> arguments = own_arguments();
  arguments.emplace_back("--profiled");
  const auto begin = std::chrono::steady_clock::now();
  // Not kOwnProgram: it is ncu that would look there.
  const NcuRun run = run_ncu(find_ncu(variable("MOETUNE_NCU"), variable("PATH")),
                             std::filesystem::read_symlink(kOwnProgram), arguments,
                             kProfilerStartS + kProfilerCallS * num_calls);
  counters.missing = run.missing;
  counters.calls = split_calls(run.kernels, kCallMarker);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
  // Numbers are only right where the other run made all calls.
  if (const auto seen = std::ssize(counters.calls); run.missing.empty() && seen != num_calls) {
    counters.missing = fmt::format("ncu saw {} of {} calls", seen, num_calls);
    counters.calls.clear();
  }
  if (!counters.missing.empty()) {
    spdlog::warn("no counters: {}", counters.missing);
  } else {
    spdlog::info("ncu: {} kernels of {} calls in {:.1f} s", run.kernels.size(), num_calls,
                 took.count());
  }
  return counters;
}

void print_json(const nlohmann::ordered_json& json) {
  fmt::print("{}\n", json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace));
}

}  // namespace moetune
