#include "tune/race.hpp"

#include <algorithm>
#include <array>
#include <map>
#include <string>
#include <utility>

#include "report/summary.hpp"

namespace moetune {
namespace {

constexpr double kRaceBand = 1.25;  // a first look's noise is well below this
// Looks that a spent budget of time still allows: the largest token counts come last, and without
// any look their entries would be the reference point.
constexpr std::size_t kFewestLooks = 8;
constexpr std::size_t kAhead = 192;  // candidates being compiled ahead of the one that runs
constexpr std::size_t kLikely = 32;  // compiled beside a batch, before it is known what follows it

// Starts compiling up to kAhead candidates from `position` of the queue on, as far as the
// allowance may reach, then what may come after the queue (unless the journal knows all of that),
// then the first of the later stage's.
void compile_ahead(Runner& runner, Proposals& proposals, std::size_t position,
                   std::uint64_t num_allowed, Proposals* later) {
  const auto top_up = [&](Proposals& of, std::size_t end) {
    std::vector<Request> requests;
    end = std::min(end, of.queue.size());
    for (; of.num_prefetched < end; ++of.num_prefetched) {
      requests.push_back({.stage = of.stage(),
                          .num_tokens = of.num_tokens(),
                          .plan = of.plan(of.queue[of.num_prefetched]),
                          .is_later = &of == later});
    }
    runner.prefetch(requests);
  };
  const auto reach = static_cast<std::size_t>(std::min<std::uint64_t>(kAhead, num_allowed));
  const bool is_new = proposals.num_prefetched == 0;
  top_up(proposals, position + reach);
  const auto is_open = [&](const Candidate& candidate) {
    return !runner.is_known({.stage = proposals.stage(),
                             .num_tokens = proposals.num_tokens(),
                             .plan = proposals.plan(candidate)},
                            0);
  };
  if (is_new && std::ranges::any_of(proposals.queue, is_open)) {
    std::vector<Request> requests;
    for (Plan& plan : proposals.likely(std::min(kLikely, reach))) {
      // Thorough: perhaps nobody asks, so no GPU shall look at it ahead.
      requests.push_back({.stage = proposals.stage(),
                          .num_tokens = proposals.num_tokens(),
                          .plan = std::move(plan),
                          .thorough = true});
    }
    runner.prefetch(requests);
  }
  const std::size_t waiting =
      proposals.num_prefetched - std::min(proposals.num_prefetched, position);
  if (later != nullptr && waiting < reach) top_up(*later, reach - waiting);
}

}  // namespace

std::vector<Trial> race(Runner& runner, Proposals& proposals, std::span<const Plan> seeds,
                        const Allowance& allowance, Proposals* later, bool by_time) {
  std::vector<Trial> trials;
  std::map<std::string, std::size_t> seen;
  std::array<double, 2> best_us{};  // [is_fp8]; 0: none yet
  const auto request = [&](const Plan& plan) {
    return Request{.stage = proposals.stage(),
                   .num_tokens = proposals.num_tokens(),
                   .plan = plan,
                   .stop_above_us = by_time ? best_us.at(is_fp8(plan)) * kRaceBand : 0};
  };
  const auto look = [&](const Plan& plan) {
    seen.emplace(plan.key(), trials.size());
    trials.push_back(runner.run(request(plan), 0));
    const Trial& trial = trials.back();
    double& best = best_us.at(is_fp8(plan));
    if (has_good_time(trial) && (best == 0 || trial.timing.median_us < best)) {
      best = trial.timing.median_us;
    }
  };
  const auto best_of_both = [&best_us] {
    const auto [least, most] = std::minmax_element(best_us.begin(), best_us.end());
    return *least > 0 ? *least : *most;
  };

  proposals.num_prefetched = 0;  // what was announced for later is wanted now
  std::vector<Request> first;
  for (const Plan& plan : seeds) first.push_back(request(plan));
  runner.prefetch(first);
  compile_ahead(runner, proposals, 0, allowance.num_trials, later);
  for (const Plan& plan : seeds)
    if (!seen.contains(plan.key())) look(plan);

  do {
    for (std::size_t i = 0; i < proposals.queue.size(); ++i) {
      const Candidate& candidate = proposals.queue[i];
      const Plan plan = proposals.plan(candidate);
      if (!seen.contains(plan.key())) {
        const bool late = runner.elapsed_s() >= allowance.until_s && trials.size() >= kFewestLooks;
        const bool spent = late || trials.size() >= allowance.num_trials;
        if (spent && !runner.is_known(request(plan), 0)) return trials;
        compile_ahead(runner, proposals, i, allowance.num_trials - trials.size(), later);
        look(plan);
      }
      candidate.strategy->observe(candidate.point, trials[seen.at(plan.key())]);
    }
  } while (proposals.refill(best_of_both()));
  return trials;
}

}  // namespace moetune
