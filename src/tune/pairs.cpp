#include "tune/pairs.hpp"

#include <algorithm>
#include <optional>

#include "report/summary.hpp"
#include "tune/evaluator.hpp"

namespace moetune {
namespace {

constexpr std::size_t kFew = 24;        // pairs that are not worth an estimate
constexpr std::size_t kPromising = 16;  // pairs that go on, at most
constexpr double kPromisingBand = 1.03;

Plan pair(const Plan& first, const Plan& second) {
  return {{first.steps.front(), second.steps.front()}};
}

std::vector<Plan> of_choice(std::span<const Plan> plans, bool fp8) {
  std::vector<Plan> chosen;
  std::copy_if(plans.begin(), plans.end(), std::back_inserter(chosen),
               [fp8](const Plan& plan) { return is_fp8(plan) == fp8; });
  return chosen;
}

// The layers' times, none where one does not work: each is checked, then all take turns, for
// between one look and the next clocks differ more than plans.
std::vector<std::optional<double>> measure(Runner& runner, std::span<const Plan> layers,
                                           std::int64_t num_tokens) {
  std::vector<Request> requests, unknown;
  for (const Plan& layer : layers) {
    requests.push_back({Stage::layer, num_tokens, layer, 0, true});
    if (!runner.is_known(requests.back(), 1)) unknown.push_back(requests.back());
  }
  runner.prefetch(unknown);
  std::vector<bool> is_right;
  std::vector<Plan> right;
  for (Request& request : requests) {
    request.num_samples = 1;
    is_right.push_back(has_good_time(runner.run(request, 1)));
    if (is_right.back()) right.push_back(request.plan);
  }
  std::vector<std::optional<double>> times(layers.size());
  for (std::size_t i = 0; i < layers.size(); ++i) {
    if (!is_right[i]) continue;
    requests[i].num_samples = kRoundSamples;
    requests[i].beside = right;
    const Trial trial = runner.run(requests[i], kPairRounds);
    if (has_good_time(trial)) times[i] = trial.timing.median_us;
  }
  return times;
}

std::vector<Plan> promising_of_choice(Runner& runner, std::span<const Plan> firsts,
                                      std::span<const Plan> seconds, std::int64_t num_tokens) {
  if (firsts.size() * seconds.size() <= kFew) return all_pairs(firsts, seconds);
  // A column and a row: first_us[i] is that of the i-th first one, second_us[j] of the j-th second.
  std::vector<Plan> layers;
  for (const Plan& first : firsts) layers.push_back(pair(first, seconds.front()));
  for (const Plan& second : seconds.subspan(1)) layers.push_back(pair(firsts.front(), second));
  std::vector<std::optional<double>> first_us = measure(runner, layers, num_tokens);
  const std::optional<double> base = first_us.front();
  if (!base) return all_pairs(firsts, seconds);
  std::vector<std::optional<double>> second_us{base};
  const auto row = first_us.begin() + static_cast<std::ptrdiff_t>(firsts.size());
  second_us.insert(second_us.end(), row, first_us.end());

  struct Estimate {
    double us;
    Plan layer;
  };
  std::vector<Estimate> estimates;
  for (std::size_t i = 0; i < firsts.size(); ++i) {
    for (std::size_t j = 0; j < seconds.size(); ++j) {
      if (!first_us[i] || !second_us[j]) continue;
      estimates.push_back({*first_us[i] + *second_us[j] - *base, pair(firsts[i], seconds[j])});
    }
  }
  std::stable_sort(estimates.begin(), estimates.end(),
                   [](const Estimate& a, const Estimate& b) { return a.us < b.us; });
  std::vector<Plan> promising;
  for (const Estimate& estimate : estimates) {
    if (promising.size() == kPromising) break;
    if (estimate.us > estimates.front().us * kPromisingBand) break;
    promising.push_back(estimate.layer);
  }
  return promising;
}

}  // namespace

std::vector<Plan> all_pairs(std::span<const Plan> firsts, std::span<const Plan> seconds) {
  std::vector<Plan> pairs;
  for (const Plan& first : firsts) {
    for (const Plan& second : seconds)
      if (is_fp8(first) == is_fp8(second)) pairs.push_back(pair(first, second));
  }
  return pairs;
}

std::vector<Plan> promising_pairs(Runner& runner, std::span<const Plan> firsts,
                                  std::span<const Plan> seconds, std::int64_t num_tokens) {
  std::vector<Plan> promising;
  for (const bool fp8 : {false, true}) {
    std::vector<Plan> of_it =
        promising_of_choice(runner, of_choice(firsts, fp8), of_choice(seconds, fp8), num_tokens);
    promising.insert(promising.end(), of_it.begin(), of_it.end());
  }
  return promising;
}

}  // namespace moetune
