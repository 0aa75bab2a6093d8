// Techniques one by one: measured pairs that differ in one thing. Pure functions.
#pragma once

#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "core/counters.hpp"
#include "report/bench_report.hpp"
#include "report/journey_report.hpp"

namespace moetune {

// A layer with or without the technique.
struct TechniqueSide {
  std::string label;  // "ORDER=0"
  std::string plan;   // "gemm1 gemm2" as step_text() has them, or what else was run
  LevelStatus status = LevelStatus::ok;
  std::string reason;  // why it is not ok
  Timing timing;
  double rel_err = 0;
  int call = -1;                         // its number among the run's; -1: it had none
  std::vector<KernelCounters> counters;  // of one call, in order
  std::string no_counters;               // why this side alone has none; empty: see the row
};

struct TechniquePair {
  std::string name;
  TechniqueSide without, with;
  std::string expected;  // what the literature reports; empty: nothing on record
  std::string note;
};

// Time without over time with; 0 where one is missing.
double gain(const TechniquePair& pair);

// All pairs of one layer at one token count.
struct TechniqueRow {
  std::string model;
  Problem problem;
  std::string lookup;  // of the plan that pairs start from
  std::vector<TechniquePair> pairs;
  std::string no_counters;  // why there are none; empty when there are
};

// The L2 hit rates of a side's GEMMs, in order; products of a library count as one. kUnknown where
// there are no counts.
struct GemmHitRate {
  std::string kernel;
  double hit_rate = kUnknown;  // 0..1
};
std::vector<GemmHitRate> gemm_hit_rates(const TechniqueSide& side);

std::string technique_text(const BenchRun& run, std::span<const TechniqueRow> rows);
nlohmann::ordered_json technique_json(const BenchRun& run, std::span<const TechniqueRow> rows);
// One row of that: what a record keeps.
nlohmann::ordered_json technique_row_json(const BenchRun& run, const TechniqueRow& row);

}  // namespace moetune
