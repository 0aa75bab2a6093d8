#include "report/summary.hpp"

#include <algorithm>
#include <cmath>
#include <tuple>

namespace moetune {
namespace {

bool is_reference(const Trial& trial, const Plan& reference) {
  return !trial.plan.steps.empty() && std::ranges::all_of(trial.plan.steps, [&](const Step& step) {
    const Step* same_op = reference.find(step.op);
    return same_op != nullptr && *same_op == step;
  });
}

}  // namespace

std::optional<SpeedupStats> speedup_stats(std::span<const double> speedups) {
  SpeedupStats stats;
  double sum_of_logs = 0;
  int num_wins = 0;
  for (const double speedup : speedups) {
    if (!std::isfinite(speedup) || !(speedup > 0)) continue;
    ++stats.num_token_counts;
    sum_of_logs += std::log(speedup);
    stats.best_speedup = std::max(stats.best_speedup, speedup);
    num_wins += speedup > 1;
  }
  if (stats.num_token_counts == 0) return std::nullopt;
  stats.avg_speedup = std::exp(sum_of_logs / stats.num_token_counts);
  stats.win_rate = static_cast<double>(num_wins) / stats.num_token_counts;
  return stats;
}

double StageResult::speedup() const {
  return reference ? reference->timing.median_us / best.timing.median_us : 0;
}

bool has_good_time(const Trial& trial) {
  return trial.status == TrialStatus::ok && !trial.screened_out &&
         std::isfinite(trial.timing.median_us) && trial.timing.median_us > 0;
}

const Trial* better(const Trial* best, const Trial& trial) {
  if (!has_good_time(trial)) return best;
  const auto order = [](const Trial& t) {
    return std::tuple(t.timing.num_samples < kRoundSamples, t.timing.median_us);
  };
  return best == nullptr || order(trial) < order(*best) ? &trial : best;
}

std::vector<StageResult> stage_results(std::span<const Trial> trials, const Plan& reference) {
  struct Found {
    const Trial* best = nullptr;
    const Trial* reference = nullptr;
  };
  std::map<std::pair<Stage, std::int64_t>, Found> groups;
  for (const Trial& trial : trials) {
    if (!has_good_time(trial)) continue;
    Found& found = groups[{trial.stage, trial.num_tokens}];
    found.best = better(found.best, trial);
    if (is_reference(trial, reference)) found.reference = better(found.reference, trial);
  }
  std::vector<StageResult> results;
  for (const auto& [group, found] : groups) {
    StageResult& result = results.emplace_back();
    std::tie(result.stage, result.num_tokens) = group;
    result.best = *found.best;
    if (found.reference != nullptr) result.reference = *found.reference;
  }
  return results;
}

SearchSummary summarise(const Table& table, std::span<const Trial> trials, const Plan& reference,
                        std::map<std::string, RejectedRule> rejected) {
  SearchSummary summary;
  summary.table = table;
  summary.reference = reference;
  summary.num_trials = trials.size();
  summary.rejected = std::move(rejected);
  for (StageResult& result : stage_results(trials, reference)) {
    if (result.stage != Stage::layer) summary.stages.push_back(std::move(result));
  }
  for (const Trial& trial : trials) {
    if (trial.status == TrialStatus::rejected) {
      add_rejected(summary.rejected, {{trial.rule, {.count = 1, .example = trial.reason}}});
    } else if (trial.status != TrialStatus::ok) {
      RejectedRule& failed = summary.failed[trial.status];
      if (failed.count++ == 0) failed.example = trial.reason;
    }
  }
  return summary;
}

void add_rejected(std::map<std::string, RejectedRule>& sum,
                  const std::map<std::string, RejectedRule>& more) {
  for (const auto& [name, rule] : more) {
    RejectedRule& total = sum[name];
    if (total.count == 0) total.example = rule.example;
    total.count += rule.count;
  }
}

std::optional<SpeedupStats> layer_stats(const SearchSummary& summary) {
  std::vector<double> speedups;
  for (const auto& [num_tokens, entry] : summary.table.entries) speedups.push_back(entry.speedup);
  return speedup_stats(speedups);
}

std::optional<SpeedupStats> stage_stats(const SearchSummary& summary, Stage stage) {
  std::vector<double> speedups;
  for (const StageResult& result : summary.stages) {
    if (result.stage == stage) speedups.push_back(result.speedup());
  }
  return speedup_stats(speedups);
}

}  // namespace moetune
