#include "cli/bench_modes.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "cli/outputs.hpp"
#include "core/error.hpp"
#include "core/text.hpp"
#include "cuda/device.hpp"

namespace moetune {

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

void print_json(const nlohmann::ordered_json& json) {
  fmt::print("{}\n", json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace));
}

}  // namespace moetune
