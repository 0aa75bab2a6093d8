// Runs trials for a search: answers from the journal what an earlier run already measured, and
// journals what it measures itself. A resumed search therefore takes the same decisions again.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/trial.hpp"
#include "search/legal_points.hpp"
#include "table/table.hpp"
#include "tune/evaluator.hpp"
#include "tune/journal.hpp"

namespace moetune {

// What someone who watches a search is told.
class SearchListener {
 public:
  virtual ~SearchListener() = default;
  virtual void note(const std::string&) {}  // what the user should know; a warning
  // `num_expected`: trials of the whole search, an estimate that gets better.
  virtual void stage_started(Stage, std::int64_t /*num_tokens*/, std::uint64_t /*num_expected*/) {}
  virtual void points_rejected(const std::map<std::string, RejectedRule>&) {}
  virtual void trial_ended(const Trial&, bool /*resumed*/) {}
  virtual void entry_chosen(std::int64_t /*num_tokens*/, const TableEntry&) {}
};

// Thrown by Runner::run when the user asked to stop. No Error: nothing went wrong.
struct Interrupted {};

class Runner {
 public:
  // `stop` is asked before each trial.
  Runner(Evaluator& evaluator, Journal& journal, std::function<bool()> stop,
         SearchListener& listener);

  // `round`: 0 for the screening look, 1, 2, ... for later measurements of the same plan.
  Trial run(const Request& request, int round);
  bool is_known(const Request& request, int round) const;
  void prefetch(std::span<const Request> requests);  // leaves out what is known

  // Seconds since the search began, earlier runs included.
  double elapsed_s() const;
  const std::vector<Trial>& trials() const { return trials_; }
  std::uint64_t num_resumed() const { return num_resumed_; }

 private:
  Evaluator& evaluator_;
  Journal& journal_;
  std::function<bool()> stop_;
  SearchListener& listener_;
  std::unordered_map<std::string, JournalTrial> known_;
  std::vector<Trial> trials_;
  std::uint64_t num_resumed_ = 0;
  double base_s_ = 0;
  std::chrono::steady_clock::time_point since_;
};

}  // namespace moetune
