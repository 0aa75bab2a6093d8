// What `moe-tune bench --serving` simulated and measured, for people and for programs. Pure.
#pragma once

#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "report/bench_report.hpp"
#include "serving/statistics.hpp"

namespace moetune {

// What all rows have in common.
struct ServingSetup {
  std::string model;  // with its shard
  Problem problem;    // num_tokens is the token budget of a step
  int num_layers = 0;
  int num_launched = 0;  // layer calls that a step launched
  bool reused = false;   // step times were measured once a padded count
  Workload workload;     // without its rate
  std::string trace;     // in place of Poisson arrivals; empty: none
  double timeout_s = 0;  // 0: none
  Objectives objectives;
};

// One set of plans at one concurrency level.
struct ServingRow {
  std::string plans;  // "table", "given", "fallback" or "reference"
  std::int64_t concurrency = 0;
  double rate_per_s = 0;          // mean arrivals
  double num_steps = 0;           // mean over repeats
  std::int64_t num_launches = 0;  // graphs launched on the GPU
  std::vector<ServingFigures<double>> repeats;
};

std::string serving_text(const BenchRun& run, const ServingSetup& setup,
                         std::span<const ServingRow> rows);
nlohmann::ordered_json serving_json(const BenchRun& run, const ServingSetup& setup,
                                    std::span<const ServingRow> rows);
// One row of that with its set-up, commit and date: what a record keeps.
nlohmann::ordered_json serving_row_json(const BenchRun& run, const ServingSetup& setup,
                                        const ServingRow& row);

// Output tokens/s of `row` over the reference's at the same concurrency; 0 without one.
double throughput_over_reference(const ServingRow& row, std::span<const ServingRow> rows);

}  // namespace moetune
