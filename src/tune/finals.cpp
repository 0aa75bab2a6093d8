#include "tune/finals.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <tuple>

#include "measure/sampling.hpp"
#include "report/summary.hpp"
#include "tune/pairs.hpp"

namespace moetune {
namespace {

// GEMMs have fewer: which of them wins is decided in layers.
constexpr int kNumRounds = 6;
constexpr int kNumGemmRounds = 4;
// Times the fastest: who goes on after the first round, the second, ... In the first, plans are
// checked and measured one after the other, while clocks change: it does not count for those who go
// on, who take turns.
constexpr std::array<double, kNumRounds - 1> kGoesOn{1.15, 1.03, 1.02, 1.02, 1.02};
constexpr double kLaunchUs = 2;      // what a kernel less saves a layer
constexpr std::size_t kOfAKind = 3;  // kernels of a variant and Surroundings
constexpr int kOfAKernel = 2;        // orders of its tiles
// How far behind, at most, the fastest of other Surroundings may be for its own to go on.
constexpr double kOtherSurroundings = 1.08;
constexpr double kCostBand = 1.01;
// Half of a tie: what preferences may cost. Another search's winner is then seldom further away
// than a tie.
constexpr double kPreferenceBand = 1.005;
constexpr double kKernelMoreUs = 1;  // what a kernel more costs a layer, but not a GEMM by itself

bool is_faster(const Trial& a, const Trial& b) {
  return a.timing.median_us < b.timing.median_us;
}

// Which rounds count: steady() as for the blocks of one measurement. All where none is.
std::vector<bool> counted(std::span<const Trial> rounds) {
  std::vector<ClockReading> clocks;
  for (const Trial& trial : rounds)
    clocks.push_back({trial.timing.clock_mhz, trial.timing.unsteady});
  std::vector<bool> counts = steady(clocks);
  if (std::find(counts.begin(), counts.end(), true) == counts.end()) counts.flip();
  return counts;
}

Trial merge(std::span<const Trial> rounds) {
  const std::vector<bool> counts = counted(rounds);
  const auto num = static_cast<double>(std::count(counts.begin(), counts.end(), true));
  Trial sum = rounds.front();
  sum.timing = {};
  double clock_mhz = 0;
  for (std::size_t i = 0; i < rounds.size(); ++i) {
    const Trial& trial = rounds[i];
    sum.rel_err = std::max(sum.rel_err, trial.rel_err);
    sum.max_err = std::max(sum.max_err, trial.max_err);
    sum.quantisation_err = std::max(sum.quantisation_err, trial.quantisation_err);
    sum.timing.num_discarded += trial.timing.num_discarded;
    if (!counts[i]) {
      sum.timing.num_discarded += trial.timing.num_samples;
      continue;
    }
    sum.timing.median_us += trial.timing.median_us / num;
    sum.timing.p10_us += trial.timing.p10_us / num;
    sum.timing.p90_us += trial.timing.p90_us / num;
    sum.timing.num_samples += trial.timing.num_samples;
    sum.timing.unsteady = sum.timing.unsteady || trial.timing.unsteady;
    clock_mhz += trial.timing.clock_mhz / num;
  }
  sum.timing.clock_mhz = static_cast<int>(std::lround(clock_mhz));
  return sum;
}

// FP8, and which kernels of their own a layer has around a GEMM: FUSE_COMBINE, GATHER. Their cost
// there is not what they add to the GEMM timed by itself.
using Surroundings = std::tuple<int, int, int>;
Surroundings surroundings(const Plan& plan) {
  const Point& point = plan.steps.front().point;
  return {point.value_or("FP8", 0), point.value_or("FUSE_COMBINE", 0), point.value_or("GATHER", 1)};
}

// Of a GEMM: plans that differ only in the order of their tiles run the same kernel.
std::string kernel_key(const Plan& plan) {
  Point kernel;
  for (const auto& [name, value] : plan.steps.front().point.values())
    if (name != "GROUP_SIZE_M" && name != "ORDER") kernel.set(name, value);
  return kernel.key();
}

// A plan's finals. While it goes on it has as many rounds as any other.
struct Final {
  const Plan* plan = nullptr;
  std::vector<Trial> rounds;
  bool is_ok = true;
  bool goes_on = true;

  void add(const Trial& trial) {
    rounds.push_back(trial);
    is_ok = is_ok && has_good_time(trial);
    goes_on = is_ok;
  }
  std::span<const Trial> counting() const {
    return std::span(rounds).subspan(rounds.size() > 1 ? 1 : 0);
  }
  double mean_us() const { return merge(counting()).timing.median_us; }
};

// Against what time a plan competes: whole layers against the fastest, a GEMM against that of its
// FP8 choice, for each is reported, and its surroundings, where that is not far behind.
class Fastest {
 public:
  explicit Fastest(Stage stage) : by_itself_(stage != Stage::layer) {}
  void add(const Final& one) {
    const double us = one.mean_us();
    for (double* best : {&best_us_[key(one)], &of_fp8_[std::get<0>(key(one))]})
      *best = *best == 0 ? us : std::min(*best, us);
  }
  double rival_us(const Final& one) const {
    const double own = best_us_.at(key(one));
    const double all = of_fp8_.at(std::get<0>(key(one)));
    return own <= all * kOtherSurroundings ? own : all;
  }

 private:
  Surroundings key(const Final& one) const {
    return by_itself_ ? surroundings(*one.plan) : Surroundings{};
  }
  bool by_itself_;
  std::map<Surroundings, double> best_us_;
  std::map<int, double> of_fp8_;
};

}  // namespace

Trial as_in_layer(Trial trial) {
  if (!has_good_time(trial) || trial.plan.steps.size() != 1) return trial;
  const Point& point = trial.plan.steps.front().point;
  for (const char* fusion : {"FUSE_SWIGLU", "FUSE_COMBINE"}) {
    if (point.value_or(fusion, 1) != 0) continue;
    trial.timing.median_us += kKernelMoreUs;
    trial.timing.p10_us += kKernelMoreUs;
    trial.timing.p90_us += kKernelMoreUs;
  }
  return trial;
}

std::vector<Trial> pick(std::span<const Trial> trials, std::size_t limit, double band) {
  if (trials.empty()) return {};
  const auto fastest = std::min_element(trials.begin(), trials.end(), is_faster);
  const double best_us = fastest->timing.median_us;
  std::vector<Trial> picked;
  std::set<int> fp8_seen;
  std::map<std::pair<Surroundings, std::string_view>, std::map<std::string, int>> of_kind;
  for (auto it = trials.begin(); it != trials.end(); ++it) {
    const Trial& trial = *it;
    const int fp8 = std::get<0>(surroundings(trial.plan));
    const bool alike = surroundings(trial.plan) == surroundings(fastest->plan);
    const double reach = alike ? band : std::max(band, kOtherSurroundings);
    const bool is_near = trial.timing.median_us <= best_us * reach + kLaunchUs;
    const bool first_fp8 = fp8_seen.insert(fp8).second;
    const std::string_view variant = trial.plan.steps.front().variant;
    std::map<std::string, int>& kernels = of_kind[{surroundings(trial.plan), variant}];
    const std::string kernel = kernel_key(trial.plan);
    const bool is_room = kernels.size() < kOfAKind || kernels.contains(kernel);
    const bool of_its_kind = is_near && is_room && ++kernels[kernel] <= kOfAKernel;
    if (it == fastest || first_fp8 || of_its_kind ||
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
                                 std::int64_t num_tokens, bool by_time) {
  std::vector<Final> finals(plans.size());
  for (std::size_t i = 0; i < plans.size(); ++i) finals[i].plan = &plans[i];
  const double least_us = stage == Stage::layer ? 0 : kLaunchUs;
  const int num_rounds = stage == Stage::layer ? kNumRounds : kNumGemmRounds;
  const int rounds_before = stage == Stage::layer ? kPairRounds : 0;
  for (int round = 1; round <= num_rounds; ++round) {
    Fastest fastest(stage);
    std::vector<Plan> beside;
    for (const Final& one : finals)
      if (round > 1 && one.goes_on) beside.push_back(*one.plan);
    for (Final& one : finals) {
      if (!one.goes_on) continue;
      Request request{stage, num_tokens, *one.plan, 0, true};
      request.num_samples = kRoundSamples;
      request.beside = beside;
      one.add(runner.run(request, rounds_before + round));
      if (one.is_ok) fastest.add(one);
    }
    if (round == num_rounds) break;
    const double band = kGoesOn[static_cast<std::size_t>(round - 1)];
    for (Final& one : finals) {
      one.goes_on =
          one.goes_on && one.is_ok && one.mean_us() <= fastest.rival_us(one) * band + least_us;
    }
  }
  std::vector<Trial> merged;
  for (const Final& one : finals) {
    if (!one.is_ok) continue;
    merged.push_back(merge(one.counting()));
    merged.back().energy_mj = one.rounds.front().energy_mj;  // the only one that reads it
    merged.back().screened_out = by_time && !one.goes_on;
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

std::vector<std::string> settle(std::vector<Trial>& trials, const Plan* pinned,
                                std::span<const Variant* const> variants) {
  std::erase_if(trials, [](const Trial& trial) { return !has_good_time(trial); });
  if (trials.empty()) return {};
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
    const bool is_behind = trial.timing.median_us > best.median_us * kPreferenceBand;
    return std::tuple(!is_pinned, is_behind, rank, trial.smem_bytes, trial.registers,
                      trial.plan.key());
  };
  const auto first_behind = std::stable_partition(
      trials.begin(), trials.end(), [&](const Trial& trial) { return is_tie(trial.timing, best); });
  std::sort(trials.begin(), first_behind,
            [&](const Trial& a, const Trial& b) { return preference(a) < preference(b); });
  std::vector<std::string> ties;
  for (auto trial = trials.begin() + 1; trial != first_behind; ++trial)
    ties.push_back(trial->plan.key());
  return ties;
}

}  // namespace moetune
