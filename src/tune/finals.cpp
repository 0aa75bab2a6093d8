#include "tune/finals.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <tuple>

#include "report/summary.hpp"

namespace moetune {
namespace {

constexpr double kSecondRound = 1.05;  // who is measured again after the first thorough round
constexpr int kNumRounds = 2;
constexpr double kLaunchUs = 2;  // what a kernel less saves a layer
constexpr double kCostBand = 1.01;

bool is_faster(const Trial& a, const Trial& b) {
  return a.timing.median_us < b.timing.median_us;
}

}  // namespace

std::vector<Trial> pick(std::span<const Trial> trials, std::size_t limit, double band) {
  if (trials.empty()) return {};
  const double best_us =
      std::min_element(trials.begin(), trials.end(), is_faster)->timing.median_us;
  std::vector<Trial> picked;
  std::set<int> fp8_seen;
  std::set<std::pair<int, int>> combine_seen;
  for (const Trial& trial : trials) {
    const Point& point = trial.plan.steps.front().point;
    const int fp8 = point.value_or("FP8", 0);
    const bool is_near = trial.timing.median_us <= best_us * band + kLaunchUs;
    const bool first_fp8 = fp8_seen.insert(fp8).second;
    const bool first_combine =
        combine_seen.insert({fp8, point.value_or("FUSE_COMBINE", 0)}).second && is_near;
    if (first_fp8 || first_combine ||
        (picked.size() < limit && trial.timing.median_us <= best_us * band)) {
      picked.push_back(trial);
    }
  }
  return picked;
}

void keep_best(std::vector<Trial>& trials, Objective objective, bool by_fp8) {
  if (objective == Objective::time) return;
  const auto group = [by_fp8](const Trial& trial) {
    return by_fp8 ? trial.plan.steps.front().point.value_or("FP8", 0) : 0;
  };
  std::map<int, double> least;
  for (const Trial& trial : trials) {
    const std::optional<double> value = cost(objective, trial);
    if (!value || !has_good_time(trial)) continue;
    double& so_far = least.try_emplace(group(trial), *value).first->second;
    so_far = std::min(so_far, *value);
  }
  std::erase_if(trials, [&](const Trial& trial) {
    const std::optional<double> value = cost(objective, trial);
    return !value || !has_good_time(trial) || *value > least.at(group(trial)) * kCostBand;
  });
}

std::vector<Trial> measure_again(Runner& runner, std::span<const Plan> plans, Stage stage,
                                 std::int64_t num_tokens) {
  std::vector<std::vector<Trial>> rounds(plans.size());
  std::vector<bool> goes_on(plans.size(), true);
  for (int round = 1; round <= kNumRounds; ++round) {
    double best_us = 0;
    for (std::size_t i = 0; i < plans.size(); ++i) {
      if (!goes_on[i]) continue;
      const Trial trial = runner.run({stage, num_tokens, plans[i], 0, true}, round);
      rounds[i].push_back(trial);
      if (has_good_time(trial) && (best_us == 0 || trial.timing.median_us < best_us)) {
        best_us = trial.timing.median_us;
      }
    }
    for (std::size_t i = 0; i < plans.size(); ++i) {
      goes_on[i] = goes_on[i] && has_good_time(rounds[i].back()) &&
                   rounds[i].back().timing.median_us <= best_us * kSecondRound;
    }
  }
  std::vector<Trial> merged;
  for (const std::vector<Trial>& of_plan : rounds) {
    if (!std::all_of(of_plan.begin(), of_plan.end(), has_good_time)) continue;
    Trial sum = of_plan.front();
    sum.timing = {};
    sum.energy_mj = 0;
    const auto num = static_cast<double>(of_plan.size());
    double clock_mhz = 0;
    for (const Trial& trial : of_plan) {
      sum.timing.median_us += trial.timing.median_us / num;
      sum.timing.p10_us += trial.timing.p10_us / num;
      sum.timing.p90_us += trial.timing.p90_us / num;
      sum.timing.num_samples += trial.timing.num_samples;
      sum.timing.num_discarded += trial.timing.num_discarded;
      sum.timing.unsteady = sum.timing.unsteady || trial.timing.unsteady;
      sum.energy_mj += trial.energy_mj / num;
      clock_mhz += trial.timing.clock_mhz / num;
      sum.rel_err = std::max(sum.rel_err, trial.rel_err);
      sum.max_err = std::max(sum.max_err, trial.max_err);
      sum.quantisation_err = std::max(sum.quantisation_err, trial.quantisation_err);
    }
    sum.timing.clock_mhz = static_cast<int>(std::lround(clock_mhz));
    merged.push_back(sum);
  }
  return merged;
}

TimeInterval confidence(std::span<const Timing> rounds) {
  constexpr double kSdsInRange = 2.563;    // p10 to p90 of a normal distribution
  constexpr double kMedianError = 1.2533;  // of a median over that of a mean, sqrt(pi / 2)
  const auto num = static_cast<double>(rounds.size());
  double sum = 0;
  double variance = 0;
  double low = rounds.front().median_us;
  double high = low;
  for (const Timing& timing : rounds) {
    const double sd = (timing.p90_us - timing.p10_us) / kSdsInRange;
    sum += timing.median_us;
    variance += kMedianError * kMedianError * sd * sd / std::max(1, timing.num_samples);
    low = std::min(low, timing.median_us);
    high = std::max(high, timing.median_us);
  }
  const double half = std::max(1.96 * std::sqrt(variance) / num, (high - low) / 2);
  return {sum / num - half, sum / num + half};
}

bool is_tie(const Timing& timing, const Timing& best) {
  if (timing.median_us <= best.median_us * 1.01) return true;
  return timing.median_us <= best.median_us * 1.02 && timing.p10_us <= best.median_us &&
         best.p90_us >= timing.median_us;
}

bool settle(std::vector<Trial>& trials, const Plan* pinned,
            std::span<const Variant* const> variants) {
  std::erase_if(trials, [](const Trial& trial) { return !has_good_time(trial); });
  if (trials.empty()) return false;
  std::stable_sort(trials.begin(), trials.end(), is_faster);
  const Timing best = trials.front().timing;
  const auto preference = [&](const Trial& trial) {
    std::ptrdiff_t rank = 0;
    for (const Step& step : trial.plan.steps) {
      rank +=
          std::find_if(variants.begin(), variants.end(),
                       [&](const Variant* variant) { return variant->name() == step.variant; }) -
          variants.begin();
    }
    const bool is_pinned = pinned != nullptr && trial.plan == *pinned;
    return std::tuple(!is_pinned, rank, trial.smem_bytes, trial.registers, trial.plan.key());
  };
  auto winner = trials.begin();
  bool tie = false;
  for (auto trial = trials.begin() + 1; trial != trials.end(); ++trial) {
    if (!is_tie(trial->timing, best)) continue;
    tie = true;
    if (preference(*trial) < preference(*winner)) winner = trial;
  }
  std::rotate(trials.begin(), winner, winner + 1);
  return tie;
}

}  // namespace moetune
