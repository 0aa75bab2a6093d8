#include "report/html_views.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

namespace moetune {
namespace {

using Look = StageLooks::Look;

bool has_time(const Trial& trial) {
  return trial.status == TrialStatus::ok && trial.plan.steps.size() == 1 &&
         std::isfinite(trial.timing.median_us) && trial.timing.median_us > 0;
}

// The faster look, but a whole one before one that was stopped early.
bool is_better(const Look& a, const Look& b) {
  return std::tuple(a.brief, a.time_us) < std::tuple(b.brief, b.time_us);
}

FixedValue cost(const StageLooks& group, int value, const Look& look) {
  return {value, 100 * (look.time_us / group.best_us - 1), look.brief};
}

using BestByValue = std::map<int, const Look*>;

BestByValue best_by_value(const StageLooks& group, const std::string& name) {
  BestByValue best;
  for (const Look& look : group.looks) {
    if (!look.point->has(name)) continue;
    const Look*& found = best[look.point->at(name)];
    if (found == nullptr || is_better(look, *found)) found = &look;
  }
  return best;
}

}  // namespace

std::vector<StageLooks> stage_looks(std::span<const TimedTrial> trials) {
  std::map<std::tuple<Stage, std::int64_t, std::string>, StageLooks> groups;
  for (const TimedTrial& timed : trials) {
    const Trial& trial = timed.trial;
    if (!has_time(trial)) continue;
    const Step& step = trial.plan.steps.front();
    StageLooks& group = groups[{trial.stage, trial.num_tokens, step.variant}];
    group.looks.push_back(
        {&step.point, timed.elapsed_s, trial.timing.median_us, trial.screened_out});
    group.sources.insert(trial.source);
    if (!trial.screened_out && (group.best == nullptr || trial.timing.median_us < group.best_us)) {
      group.best = &step.point;
      group.best_us = trial.timing.median_us;
    }
  }
  std::vector<StageLooks> result;
  for (auto& [key, group] : groups) {
    if (group.best == nullptr) continue;
    std::tie(group.stage, group.num_tokens, group.variant) = key;
    result.push_back(std::move(group));
  }
  return result;
}

std::vector<ParameterCost> parameter_costs(const StageLooks& group) {
  std::vector<ParameterCost> costs;
  for (const auto& [name, ignored] : group.best->values()) {
    const BestByValue best = best_by_value(group, name);
    if (best.size() < 2) continue;
    ParameterCost& parameter = costs.emplace_back();
    parameter.name = name;
    for (const auto& [value, look] : best) {
      parameter.values.push_back(cost(group, value, *look));
      parameter.range_percent =
          std::max(parameter.range_percent, parameter.values.back().cost_percent);
    }
  }
  std::stable_sort(costs.begin(), costs.end(), [](const ParameterCost& a, const ParameterCost& b) {
    return a.range_percent > b.range_percent;
  });
  return costs;
}

HeatMap heat_map(const StageLooks& group, const std::string& row, const std::string& column) {
  std::map<std::pair<int, int>, const Look*> best;
  std::set<int> rows, columns;
  for (const Look& look : group.looks) {
    if (!look.point->has(row) || !look.point->has(column)) continue;
    const std::pair at(look.point->at(row), look.point->at(column));
    rows.insert(at.first);
    columns.insert(at.second);
    const Look*& found = best[at];
    if (found == nullptr || is_better(look, *found)) found = &look;
  }
  HeatMap map{row, column, {rows.begin(), rows.end()}, {columns.begin(), columns.end()}, {}};
  for (const int r : map.rows) {
    auto& cells = map.cells.emplace_back();
    for (const int c : map.columns) {
      const auto found = best.find({r, c});
      cells.push_back(found == best.end() ? std::optional<FixedValue>()
                                          : cost(group, c, *found->second));
    }
  }
  return map;
}

std::vector<ConvergencePoint> convergence(const StageLooks& group) {
  std::vector<ConvergencePoint> points;
  double best_us = std::numeric_limits<double>::infinity();
  const double began_s = group.looks.front().elapsed_s;
  std::uint64_t num_looks = 0;
  for (const Look& look : group.looks) {
    ++num_looks;
    if (look.brief || !(look.time_us < best_us)) continue;
    best_us = look.time_us;
    points.push_back({look.elapsed_s - began_s, num_looks, best_us});
  }
  if (points.back().num_looks < num_looks) {
    points.push_back({group.looks.back().elapsed_s - began_s, num_looks, best_us});
  }
  return points;
}

}  // namespace moetune
