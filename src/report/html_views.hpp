// What the charts of a report show, computed from trials. Pure functions.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "core/trial.hpp"
#include "report/html_data.hpp"

namespace moetune {

// The timed looks at one variant's points, for one stage and token count, in the journal's order.
struct StageLooks {
  Stage stage = Stage::gemm1;
  std::int64_t num_tokens = 0;
  std::string variant;
  struct Look {
    const Point* point;
    double elapsed_s;
    double time_us;
    bool brief;  // stopped early: clearly slower than the best
  };
  std::vector<Look> looks;
  std::set<Source> sources;
  double best_us = 0;
  const Point* best = nullptr;  // of the looks that were not stopped early
};

// Every group that has a time, ordered by stage, token count and variant. Points into `trials`.
std::vector<StageLooks> stage_looks(std::span<const TimedTrial> trials);

// How much slower the best point becomes when a parameter is fixed at a value and the others are
// free: 0 for the best point's own value.
struct FixedValue {
  int value = 0;
  double cost_percent = 0;
  bool brief = false;  // only looks that were stopped early
};
struct ParameterCost {
  std::string name;
  std::vector<FixedValue> values;  // ascending
  double range_percent = 0;        // the largest cost
};
// Parameters of which two values or more were timed, the most costly first.
std::vector<ParameterCost> parameter_costs(const StageLooks& group);

// The same for two parameters fixed at once; nothing where no such point was timed.
struct HeatMap {
  std::string row_name, column_name;
  std::vector<int> rows, columns;
  std::vector<std::vector<std::optional<FixedValue>>> cells;  // [rows][columns], by column's value
};
HeatMap heat_map(const StageLooks& group, const std::string& row, const std::string& column);

// The best so far, each time that it got better; the last point is the group's last look.
struct ConvergencePoint {
  double elapsed_s = 0;  // since the group's first look
  std::uint64_t num_looks = 0;
  double best_us = 0;
};
std::vector<ConvergencePoint> convergence(const StageLooks& group);

}  // namespace moetune
