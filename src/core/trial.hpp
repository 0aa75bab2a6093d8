// One evaluation of one plan: what was tried and what came of it. A point that fails is data.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "core/point.hpp"

namespace moetune {

// What is timed. gemm1 = gate/up GEMM with what follows it (SwiGLU, requantisation, split-K sum);
// gemm2 = down GEMM with the weighted sum over the top-k; layer = everything, sort included.
enum class Stage { gemm1, gemm2, layer };

enum class TrialStatus { ok, rejected, compile_failed, launch_failed, wrong_result, timed_out };

// Where a time comes from. Only `measured` is a measurement of this run on this GPU.
enum class Source { measured, recorded, predicted };

std::string_view to_string(Stage stage);
std::string_view to_string(TrialStatus status);
std::string_view to_string(Source source);
Stage parse_stage(std::string_view text);  // these three throw Error(input)
TrialStatus parse_status(std::string_view text);
Source parse_source(std::string_view text);

// One kernel choice inside a layer call. `op` is "gemm1" or "gemm2" for the portable family; the
// steps around them (sort, quantise, activation, combine) follow from the points.
struct Step {
  std::string op;
  std::string variant;  // a name from kernels/registry.cpp
  Point point;
  bool operator==(const Step&) const = default;
};

// How one layer call (or one stage of it) runs: its tunable steps in order.
struct Plan {
  std::vector<Step> steps;
  const Step* find(std::string_view op) const;
  std::string key() const;  // "gemm1:portable:BLOCK_SIZE_M=64,...;gemm2:..."
  bool operator==(const Plan&) const = default;
};

// Whether calls give the same bits each time: a fused weighted sum adds rows as they come.
bool is_deterministic(const Point& point);
bool is_deterministic(const Plan& plan);

inline constexpr int kFullSamples = 20;  // the timing protocol's
inline constexpr int kRoundSamples = 5;  // a round of finals takes; a first look takes fewer

// Microseconds for one call. Percentiles are over `num_samples` graph replays, each divided by the
// number of calls (routings) in the graph.
struct Timing {
  double median_us = 0;
  double p10_us = 0;
  double p90_us = 0;
  int num_samples = 0;
  int num_discarded = 0;  // samples thrown away because the clock was throttled
  int clock_mhz = 0;      // median SM clock of the samples; 0: no clock check
  bool unsteady = false;  // the clock never settled, so that no sample was thrown away
};

struct Trial {
  Stage stage = Stage::layer;
  std::int64_t num_tokens = 0;
  Plan plan;
  TrialStatus status = TrialStatus::ok;
  std::string rule;    // rejected: the constraint's name, or "registers", "spill", "shared_memory"
  std::string reason;  // why it is not ok, with numbers
  double rel_err = 0;  // worst over the checked routings: ||out - ref|| / ||ref||
  double max_err = 0;  // worst element: |out - ref| / (|ref| + rms(its reference row))
  // What fp8 itself costs: ||out - bf16 ref|| / ||bf16 ref|| of a layer with FP8=1, where rel_err
  // is against the reference on the same quantised inputs. 0 when not measured.
  double quantisation_err = 0;
  double compile_ms = 0;
  int registers = 0;  // per thread, the most over the plan's GEMM kernels
  int spill_bytes = 0;
  int smem_bytes = 0;                // per block, the most over the plan's GEMM kernels
  std::int64_t workspace_bytes = 0;  // of intermediate results of one call; 0: not known
  double energy_mj = 0;              // of one call, millijoules; 0: not measured
  Timing timing;
  bool screened_out = false;  // timed briefly and stopped early: clearly slower than the best
  Source source = Source::measured;
};

void to_json(nlohmann::ordered_json& json, const Plan& plan);
void from_json(const nlohmann::ordered_json& json, Plan& plan);
void to_json(nlohmann::ordered_json& json, const Trial& trial);
void from_json(const nlohmann::ordered_json& json, Trial& trial);  // throws Error(input)

}  // namespace moetune
