// What the modes of `moe-tune bench` share, and the modes that have files of their own.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/bench_plans.hpp"
#include "cli/cache_dir.hpp"
#include "cli/problem_options.hpp"
#include "core/counters.hpp"
#include "report/bench_report.hpp"

namespace moetune {

struct JourneyModeOptions {
  bool chosen = false;
  double memory_limit_gb = 8;  // for level 1's gathered weights
  double budget_s = 10;        // for timing one slow level
  std::string figure;          // SVG
};

struct ServingModeOptions {
  bool chosen = false;
  std::vector<std::int64_t> concurrencies = {8, 32, 128};
  double rate_per_s = 0;  // 0: from `load`
  double load = 0.8;
  double duration_s = 60;
  std::int64_t prompt_tokens = 512;
  std::int64_t output_tokens = 128;
  std::string trace;
  std::int64_t token_budget = 2048;
  int num_layers = 32;
  int num_launched = 8;
  int num_repeats = 3;
  double timeout_s = 30;
  double first_token_s = 2;
  double time_per_token_ms = 100;
  bool reuse_step_times = false;
};

struct BenchOptions {
  ProblemOptions problem;  // its model is a comma-separated list
  PlanOptions plans;
  std::vector<std::int64_t> token_counts = default_token_counts();
  std::string device = "auto";
  std::string compare;
  std::string out;
  std::string commit;
  std::string records_dir = "results";
  std::string cache_dir = default_cache_dir();
  int num_jobs = 0;
  bool json = false;
  JourneyModeOptions journey;
  ServingModeOptions serving;
  bool techniques = false;
  bool kernels = false;
  bool mxfp8 = false;
  std::string counters = "auto";  // or "off"
  // This process is run by a profiler: only make the calls, see bench/numbered_calls.hpp.
  bool profiled = false;
};

// One model and what is to be timed of it.
struct BenchLayer {
  std::string name;  // with its shard
  Problem problem;   // at the largest token count
  std::vector<ChosenPlan> plans;
};

// A layer for each model of the list. Throws as ProblemOptions::make() and choose_plans() do.
std::vector<BenchLayer> choose_layers(const BenchOptions& options, const Gpu& gpu);
// The modes that measure in this process, without a search's child. Throws Error(device) where
// there is no GPU or --device names an offline one, saying that `mode` needs one.
DeviceChoice choose_real_device(const BenchOptions& options, const char* mode);
BenchRun make_run(const BenchOptions& options, const Gpu& gpu, const Problem& problem);
// Whether a plan of the layer multiplies in fp8.
bool wants_fp8(const BenchLayer& layer);

inline constexpr const char* kNotProfiled = "the profiler has not run yet";

// What a profiler saw of a run's calls.
struct CallCounters {
  std::vector<std::vector<KernelCounters>> calls;  // by number
  std::string missing;                             // why there are none
  // Of one call; empty where there are none.
  std::vector<KernelCounters> of(int call) const;
};
// Runs this command again under ncu, to see the same `num_calls` calls. Call it when the memory of
// this run's layers is free again. Says what is missing on stderr too.
CallCounters collect_counters(const BenchOptions& options, int num_calls);

void print_json(const nlohmann::ordered_json& json);

void add_journey_options(CLI::App& command, JourneyModeOptions& options);
int bench_journey(const BenchOptions& options);

void add_serving_options(CLI::App& command, ServingModeOptions& options);
int bench_serving(const BenchOptions& given);

int bench_techniques(const BenchOptions& options);

int bench_kernels(const BenchOptions& options);

int bench_mxfp8(const BenchOptions& given);

}  // namespace moetune
