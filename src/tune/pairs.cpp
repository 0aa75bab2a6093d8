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

// A layer's time; none where it does not work.
std::optional<double> look(Runner& runner, const Plan& layer, std::int64_t num_tokens) {
  const Trial trial = runner.run({Stage::layer, num_tokens, layer, 0, false}, 0);
  if (!has_good_time(trial)) return {};
  return trial.timing.median_us;
}

std::vector<Plan> promising_of_choice(Runner& runner, const std::vector<Plan>& firsts,
                                      const std::vector<Plan>& seconds, std::int64_t num_tokens) {
  if (firsts.size() * seconds.size() <= kFew) return all_pairs(firsts, seconds);
  std::vector<Request> requests;
  requests.reserve(firsts.size() + seconds.size());
  for (const Plan& first : firsts)
    requests.push_back({Stage::layer, num_tokens, pair(first, seconds.front()), 0, false});
  for (const Plan& second : seconds)
    requests.push_back({Stage::layer, num_tokens, pair(firsts.front(), second), 0, false});
  runner.prefetch(requests);

  const std::optional<double> base =
      look(runner, pair(firsts.front(), seconds.front()), num_tokens);
  if (!base) return all_pairs(firsts, seconds);
  const auto with_best = [&](const std::vector<Plan>& plans, const auto& layer_of) {
    std::vector<std::optional<double>> times{base};
    for (auto plan = plans.begin() + 1; plan != plans.end(); ++plan)
      times.push_back(look(runner, layer_of(*plan), num_tokens));
    return times;
  };
  const auto first_us =
      with_best(firsts, [&](const Plan& first) { return pair(first, seconds.front()); });
  const auto second_us =
      with_best(seconds, [&](const Plan& second) { return pair(firsts.front(), second); });

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
