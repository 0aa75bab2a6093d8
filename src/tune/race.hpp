// The first looks at a stage's candidates: losers stop early.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "core/trial.hpp"
#include "tune/budget.hpp"
#include "tune/proposals.hpp"
#include "tune/runner.hpp"

namespace moetune {

// Batch by batch, so that two stages can take turns: while one's batch is measured, what the other
// strategy proposed next is compiled.
class Race {
 public:
  // `seeds` come first, whatever the allowance: one-step plans that set the bound, such as the
  // winners of the token count before. `by_time` false: nothing is stopped early, for something
  // else than time may win. `runner` and `proposals` must outlive this.
  Race(Runner& runner, Proposals& proposals, std::vector<Plan> seeds, const Allowance& allowance,
       bool by_time = true);

  // Looks at the seeds and then at what is queued, until the allowance is spent; what is clearly
  // slower than the best so far, of its FP8 choice, is not timed at length. Then has the next
  // batch compiled. False when there is none.
  bool next_batch();

  const std::vector<Trial>& trials() const { return trials_; }
  std::uint64_t num_measured() const { return num_measured_; }  // that no journal knew

 private:
  Request request(const Plan& plan) const;
  void look(const Plan& plan);
  bool look_at_queue();
  double best_of_both() const;

  Runner& runner_;
  Proposals& proposals_;
  std::vector<Plan> seeds_;
  Allowance allowance_;
  bool by_time_;
  std::vector<Trial> trials_;
  std::map<std::string, std::size_t> seen_;
  std::array<double, 2> best_us_{};  // [is_fp8]; 0: none yet
  std::uint64_t num_measured_ = 0;
};

// Has the first candidates of a race to come compiled, and looked at by GPUs that have nothing else
// to do.
void announce(Runner& runner, Proposals& later);

}  // namespace moetune
