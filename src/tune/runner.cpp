#include "tune/runner.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace moetune {
namespace {

std::string memo_key(Stage stage, std::int64_t num_tokens, int round, const Plan& plan) {
  return fmt::format("{}|{}|{}|{}", to_string(stage), num_tokens, round, plan.key());
}

}  // namespace

Runner::Runner(Evaluator& evaluator, Journal& journal, std::function<bool()> stop,
               SearchListener& listener)
    : evaluator_(evaluator),
      journal_(journal),
      stop_(std::move(stop)),
      listener_(listener),
      since_(std::chrono::steady_clock::now()) {
  for (JournalTrial& known : journal.take_known()) {
    const Trial& trial = known.trial;
    known_.insert_or_assign(memo_key(trial.stage, trial.num_tokens, known.round, trial.plan),
                            std::move(known));
  }
}

Trial Runner::run(const Request& request, int round) {
  const auto known = known_.find(memo_key(request.stage, request.num_tokens, round, request.plan));
  if (known != known_.end()) {
    // The clock follows the journal's, so that a budget of time is spent as it was.
    base_s_ = std::max(base_s_, known->second.elapsed_s);
    since_ = std::chrono::steady_clock::now();
    ++num_resumed_;
    trials_.push_back(known->second.trial);
    listener_.trial_ended(trials_.back(), true);
    return trials_.back();
  }
  if (stop_()) throw Interrupted{};
  Trial trial = evaluator_.evaluate(request);
  trial.stage = request.stage;
  trial.num_tokens = request.num_tokens;
  trial.plan = request.plan;
  journal_.append(JournalTrial{trial, round, elapsed_s()});
  trials_.push_back(trial);
  listener_.trial_ended(trial, false);
  return trial;
}

bool Runner::is_known(const Request& request, int round) const {
  return known_.contains(memo_key(request.stage, request.num_tokens, round, request.plan));
}

void Runner::prefetch(std::span<const Request> requests) {
  std::vector<Request> unknown;
  for (const Request& request : requests)
    if (!is_known(request, 0)) unknown.push_back(request);
  if (!unknown.empty()) evaluator_.prefetch(unknown);
}

double Runner::elapsed_s() const {
  const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - since_;
  return base_s_ + passed.count();
}

}  // namespace moetune
