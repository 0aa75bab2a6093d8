#include "tune/race.hpp"

#include <algorithm>
#include <utility>

#include "report/summary.hpp"
#include "tune/finals.hpp"

namespace moetune {
namespace {

constexpr double kRaceBand = 1.25;  // a first look's noise is well below this
// Looks that a spent budget of time still allows: the largest token counts come last, and without
// any look their entries would be the reference point.
constexpr std::size_t kFewestLooks = 8;
constexpr std::size_t kAhead = 192;  // candidates being compiled ahead of the one that runs
// Of each strategy, compiled beside a batch, before it is known what follows it. A fifth of these
// are in the next batch; of the next 8 an eighth.
constexpr std::size_t kLikely = 8;

// Starts compiling up to kAhead candidates from `position` of the queue on, as far as the
// allowance may reach, then what may come after the queue (unless the journal knows all of that).
void compile_ahead(Runner& runner, Proposals& proposals, std::size_t position,
                   std::uint64_t num_allowed, Urgency urgency) {
  const auto reach = static_cast<std::size_t>(std::min<std::uint64_t>(kAhead, num_allowed));
  const bool is_new = proposals.num_prefetched == 0;
  const auto request = [&](Plan plan) {
    return Request{.stage = proposals.stage(),
                   .num_tokens = proposals.num_tokens(),
                   .plan = std::move(plan),
                   .urgency = urgency};
  };
  std::vector<Request> requests;
  const std::size_t end = std::min(position + reach, proposals.queue.size());
  for (; proposals.num_prefetched < end; ++proposals.num_prefetched) {
    requests.push_back(request(proposals.plan(proposals.queue[proposals.num_prefetched])));
  }
  runner.prefetch(requests);
  const auto is_open = [&](const Candidate& candidate) {
    return !runner.is_known(request(proposals.plan(candidate)), 0);
  };
  if (!is_new || urgency != Urgency::next || std::ranges::none_of(proposals.queue, is_open)) return;
  requests.clear();
  for (Plan& plan : proposals.likely(std::min(kLikely, reach))) {
    requests.push_back(request(std::move(plan)));
    requests.back().urgency = Urgency::perhaps;
  }
  std::ranges::reverse(requests);  // the last is compiled first
  runner.prefetch(requests);
}

}  // namespace

Race::Race(Runner& runner, Proposals& proposals, std::vector<Plan> seeds,
           const Allowance& allowance, bool by_time)
    : runner_(runner),
      proposals_(proposals),
      seeds_(std::move(seeds)),
      allowance_(allowance),
      by_time_(by_time) {
  proposals_.num_prefetched = 0;  // what was announced for later is wanted now
  std::vector<Request> first;
  for (const Plan& plan : seeds_) first.push_back(request(plan));
  runner_.prefetch(first);
  compile_ahead(runner_, proposals_, 0, allowance_.num_trials, Urgency::next);
}

Request Race::request(const Plan& plan) const {
  return {.stage = proposals_.stage(),
          .num_tokens = proposals_.num_tokens(),
          .plan = plan,
          .stop_above_us = by_time_ ? best_us_.at(is_fp8(plan)) * kRaceBand : 0};
}

void Race::look(const Plan& plan) {
  const Request wanted = request(plan);
  if (!runner_.is_known(wanted, 0)) ++num_measured_;
  seen_.emplace(plan.key(), trials_.size());
  trials_.push_back(as_in_layer(runner_.run(wanted, 0)));
  const Trial& trial = trials_.back();
  double& best = best_us_.at(is_fp8(plan));
  if (has_good_time(trial) && (best == 0 || trial.timing.median_us < best)) {
    best = trial.timing.median_us;
  }
}

double Race::best_of_both() const {
  const auto [least, most] = std::minmax_element(best_us_.begin(), best_us_.end());
  return *least > 0 ? *least : *most;
}

// False when the allowance is spent.
bool Race::look_at_queue() {
  for (std::size_t i = 0; i < proposals_.queue.size(); ++i) {
    const Candidate& candidate = proposals_.queue[i];
    const Plan plan = proposals_.plan(candidate);
    if (!seen_.contains(plan.key())) {
      const bool late = runner_.elapsed_s() >= allowance_.until_s && trials_.size() >= kFewestLooks;
      const bool spent = late || trials_.size() >= allowance_.num_trials;
      if (spent && !runner_.is_known(request(plan), 0)) return false;
      compile_ahead(runner_, proposals_, i, allowance_.num_trials - trials_.size(), Urgency::next);
      look(plan);
    }
    candidate.strategy->observe(candidate.point, trials_[seen_.at(plan.key())]);
  }
  return true;
}

bool Race::next_batch() {
  for (const Plan& plan : std::exchange(seeds_, {}))
    if (!seen_.contains(plan.key())) look(plan);
  if (!look_at_queue() || !proposals_.refill(best_of_both())) return false;
  const std::uint64_t num_allowed =
      allowance_.num_trials - std::min<std::uint64_t>(allowance_.num_trials, trials_.size());
  compile_ahead(runner_, proposals_, 0, num_allowed, Urgency::next);
  return true;
}

void announce(Runner& runner, Proposals& later) {
  compile_ahead(runner, later, 0, kAhead, Urgency::later);
}

}  // namespace moetune
