// `moe-tune bench --serving`: a server's load on the layer, its steps timed on the GPU.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "bench/step_timer.hpp"
#include "cli/bench_modes.hpp"
#include "core/error.hpp"
#include "report/bench_record.hpp"
#include "report/row_record.hpp"
#include "report/serving_report.hpp"
#include "serving/simulate.hpp"

namespace moetune {
namespace {

constexpr const char* kReference = "reference";

// The plans of one row of the comparison, a count each, and what steps by them take.
struct PlanSet {
  std::string name;
  std::vector<CountPlan> plans;
  std::unique_ptr<StepTimer> timer;
};

std::vector<CountPlan> count_plans(const std::vector<ChosenPlan>& chosen) {
  std::vector<CountPlan> plans;
  for (const ChosenPlan& one : chosen) {
    if (!one.defect.empty()) {
      throw Error(ErrorKind::failed, fmt::format("the plan for {} tokens: {}; tune anew, or use "
                                                 "--reference",
                                                 one.num_tokens, one.defect));
    }
    plans.push_back({one.num_tokens, one.plan});
  }
  return plans;
}

// What was asked for, "table" where a table was found, beside the reference point.
std::vector<PlanSet> choose_sets(const BenchOptions& options, const Gpu& gpu,
                                 const BenchLayer& layer) {
  std::vector<PlanSet> sets;
  const std::string& lookup = layer.plans.front().lookup;
  const bool from_table = lookup == "exact" || lookup.starts_with("nearest");
  if (lookup != "fallback" && lookup != kReference)
    sets.push_back({from_table ? "table" : lookup, count_plans(layer.plans), nullptr});
  PlanOptions reference = options.plans;
  reference.reference = true;
  reference.gemm1.clear();
  reference.gemm2.clear();
  sets.push_back({kReference,
                  count_plans(choose_plans(reference, gpu, layer.problem, options.token_counts)),
                  nullptr});
  return sets;
}

bool wants_fp8(const std::vector<PlanSet>& sets, const Problem& problem) {
  const auto is_on = [](const CountPlan& one) {
    return std::any_of(one.plan.steps.begin(), one.plan.steps.end(),
                       [](const Step& step) { return step.point.value_or("FP8", 0) != 0; });
  };
  return is_fp8(problem.dtype) || std::any_of(sets.begin(), sets.end(), [&](const PlanSet& set) {
           return std::any_of(set.plans.begin(), set.plans.end(), is_on);
         });
}

ServingSetup make_setup(const BenchOptions& options, const BenchLayer& layer) {
  const ServingModeOptions& serving = options.serving;
  ServingSetup setup;
  setup.model = layer.name;
  setup.problem = layer.problem;
  setup.num_layers = serving.num_layers;
  setup.num_launched = std::min(serving.num_launched, serving.num_layers);
  setup.reused = serving.reuse_step_times;
  setup.workload = {serving.rate_per_s, serving.duration_s, serving.prompt_tokens,
                    serving.output_tokens, layer.problem.seed};
  setup.trace = serving.trace;
  setup.timeout_s = serving.timeout_s;
  setup.objectives = {serving.first_token_s, serving.time_per_token_ms / 1e3};
  return setup;
}

void serve(const BenchOptions& options, const ServingSetup& setup, const PlanSet& set,
           const ServerOptions& server, ServingRow& row) {
  StepTimer& timer = *set.timer;
  const StepTime step_time = [&](std::int64_t num_tokens) { return timer.step_s(num_tokens); };
  const std::int64_t launches_before = timer.num_launches();
  for (int repeat = 0; repeat < options.serving.num_repeats; ++repeat) {
    Workload workload = setup.workload;
    workload.rate_per_s = row.rate_per_s;
    workload.seed += static_cast<std::uint64_t>(repeat);
    const auto requests =
        setup.trace.empty() ? poisson_requests(workload) : read_requests(setup.trace);
    const ServingRun run = simulate(requests, server, step_time);
    row.repeats.push_back(figures_of(run, setup.objectives));
    row.num_steps += static_cast<double>(run.num_steps) / options.serving.num_repeats;
    spdlog::info("concurrency {}, {}: {:.0f} output tokens/s in {:.1f} simulated s",
                 server.concurrency, set.name, row.repeats.back().output_tokens_per_s, run.end_s);
  }
  row.num_launches = timer.num_launches() - launches_before;
}

double mean_rate(const std::vector<ServingRequest>& requests) {
  const double span_s = requests.back().arrival_s - requests.front().arrival_s;
  return span_s > 0 ? static_cast<double>(requests.size() - 1) / span_s : 0;
}

void check_options(const ServingModeOptions& serving) {
  const std::int64_t most =
      *std::max_element(serving.concurrencies.begin(), serving.concurrencies.end());
  if (most > serving.token_budget) {
    throw Error(ErrorKind::usage,
                fmt::format("--concurrency {} is more than the {} tokens of a step; raise "
                            "--token-budget",
                            most, serving.token_budget));
  }
}

}  // namespace

void add_serving_options(CLI::App& command, ServingModeOptions& options) {
  const std::string group = "Serving";
  auto* mode =
      command
          .add_flag("--serving", options.chosen,
                    "A server with continuous batching under load, each step's layers timed on the "
                    "GPU: the table against the reference point")
          ->group(group);
  const auto add = [&](const char* name, auto& value, const char* help, const char* type) {
    return command.add_option(name, value, help)
        ->capture_default_str()
        ->type_name(type)
        ->needs(mode)
        ->group(group);
  };
  command
      .add_option("--concurrency", options.concurrencies,
                  "Requests worked on at a time, a list: a row each")
      ->capture_default_str()
      ->type_name("C,...")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(integer_from(1))
      ->needs(mode)
      ->group(group);
  add("--rate", options.rate_per_s,
      "Requests a second; 0: what keeps --load of the places busy with the reference point", "R")
      ->check(CLI::NonNegativeNumber);
  add("--load", options.load, "Share of the places kept busy, for --rate 0", "SHARE")
      ->check(CLI::PositiveNumber);
  add("--duration", options.duration_s, "Seconds of simulated arrivals", "S")
      ->check(CLI::PositiveNumber);
  add("--prompt", options.prompt_tokens, "Mean tokens of a prompt", "N")->check(integer_from(1));
  add("--output", options.output_tokens, "Mean tokens of an output", "N")->check(integer_from(1));
  add("--trace", options.trace,
      "Arrivals from a file in place of all these: ARRIVAL_S PROMPT_TOKENS OUTPUT_TOKENS a line",
      "FILE");
  add("--token-budget", options.token_budget, "Most tokens of a step", "N")->check(integer_from(1));
  add("--layers", options.num_layers, "MoE layers that a step runs through", "N")
      ->check(integer_from(1));
  add("--launched-layers", options.num_launched,
      "Of these, launched each step; their time is scaled to all", "N")
      ->check(integer_from(1));
  add("--repeats", options.num_repeats, "Runs with seeds of their own, for the intervals", "N")
      ->check(integer_from(1));
  add("--timeout", options.timeout_s, "Seconds of waiting after which one is turned away; 0: none",
      "S")
      ->check(CLI::NonNegativeNumber);
  add("--ttft-objective", options.first_token_s,
      "Seconds to the first token that count as success; 0: any", "S")
      ->check(CLI::NonNegativeNumber);
  add("--tpot-objective", options.time_per_token_ms,
      "Milliseconds a token after it that count as success; 0: any", "MS")
      ->check(CLI::NonNegativeNumber);
  command
      .add_flag("--reuse-step-times", options.reuse_step_times,
                "Measure each padded token count once and reuse it; quicker, and labelled so")
      ->needs(mode)
      ->group(group);
}

int bench_serving(const BenchOptions& given) {
  check_options(given.serving);
  const DeviceChoice device = choose_real_device(given, "--serving");
  BenchOptions options = given;
  options.token_counts = padded_counts(given.serving.token_budget);
  const std::vector<BenchLayer> layers = choose_layers(options, device.gpu);
  const BenchRun run = make_run(options, device.gpu, layers.front().problem);
  if (!options.out.empty()) {
    read_rows(options.out, run, "serving");
    check_record_place(options.out);
  }
  if (!options.serving.trace.empty()) read_requests(options.serving.trace);

  check_cuda(cudaSetDevice(device.ordinal), "cudaSetDevice");
  nlohmann::ordered_json json = nlohmann::ordered_json::array();
  for (const BenchLayer& layer : layers) {
    std::vector<PlanSet> sets = choose_sets(options, device.gpu, layer);
    const ServingSetup setup = make_setup(options, layer);
    Compiler compiler(arch_name(device.gpu), options.cache_dir, options.num_jobs);
    Layer on_gpu(device.gpu, layer.problem, wants_fp8(sets, layer.problem), compiler);
    const auto batch = on_gpu.make_batch(layer.problem, setup.num_launched);
    for (PlanSet& set : sets) {
      set.timer = std::make_unique<StepTimer>(
          device.gpu, on_gpu, *batch, set.plans, compiler,
          StepTimerOptions{setup.num_layers, setup.num_launched, setup.reused});
    }
    std::vector<ServingRow> rows;
    for (const std::int64_t concurrency : options.serving.concurrencies) {
      const ServerOptions server{options.serving.token_budget, concurrency, setup.timeout_s};
      double rate_per_s = options.serving.rate_per_s;
      if (!setup.trace.empty()) {
        rate_per_s = mean_rate(read_requests(setup.trace));
      } else if (rate_per_s <= 0) {
        StepTimer& reference = *sets.back().timer;
        rate_per_s = rate_for_load(setup.workload, server, options.serving.load,
                                   [&](std::int64_t n) { return reference.step_s(n); });
      }
      for (const PlanSet& set : sets) {
        ServingRow row{set.name, concurrency, rate_per_s, 0, 0, {}};
        serve(options, setup, set, server, row);
        rows.push_back(row);
        if (!options.out.empty()) {
          update_rows(options.out, run, serving_row_json(run, setup, row),
                      {"model", "dtype", "num_tokens", "routing", "concurrency", "plans"});
        }
      }
    }
    if (options.json) {
      json.push_back(serving_json(run, setup, rows));
    } else {
      fmt::print("{}\n", serving_text(run, setup, rows));
    }
  }
  if (options.json) print_json(json.size() == 1 ? json.front() : json);
  return 0;
}

}  // namespace moetune
