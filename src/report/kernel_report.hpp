// The kernels of a layer call one by one, each beside its own floor. Pure functions.
#pragma once

#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "core/counters.hpp"
#include "report/bench_report.hpp"
#include "report/journey_report.hpp"
#include "report/kernel_work.hpp"

namespace moetune {

// One layer at one token count.
struct KernelRow {
  std::string model;  // with its shard
  Problem problem;
  std::string lookup;  // as in BenchRow
  Plan plan;
  LevelStatus status = LevelStatus::ok;
  std::string reason;  // why it is not ok
  Timing timing;       // of the whole layer, by the protocol
  double rel_err = 0;
  int call = -1;                         // as TechniqueSide has it
  std::vector<KernelWork> works;         // in order of launch
  std::vector<KernelCounters> counters;  // of one call, in order
  std::string no_counters;               // why there are none; empty when there are
};

// A kernel that was launched, or should be. Null: not profiled, or not one that was expected.
struct KernelPair {
  const KernelWork* work = nullptr;
  const KernelCounters* counters = nullptr;
};
// In order of launch. Works are given to kernels only where all names are as expected. The result
// lives as long as `row`.
std::vector<KernelPair> pair_kernels(const KernelRow& row);

std::string kernel_text(const BenchRun& run, std::span<const KernelRow> rows);
nlohmann::ordered_json kernel_json(const BenchRun& run, std::span<const KernelRow> rows);
// One row of that: what a record keeps.
nlohmann::ordered_json kernel_row_json(const BenchRun& run, const KernelRow& row);

}  // namespace moetune
