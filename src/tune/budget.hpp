// How much a search may spend, and how that is shared so that every token count gets its part.
#pragma once

#include <cstdint>
#include <limits>
#include <string_view>

namespace moetune {

// 0: no limit. Trials are first looks at a point; measuring the finalists again comes on top.
struct Budget {
  double seconds = 0;
  std::uint64_t num_trials = 0;
};

// "500" is a count, "90s", "10m", "1.5h" a time. Throws Error(usage).
Budget parse_budget(std::string_view text);

// What one (token count, stage) may spend.
struct Allowance {
  double until_s = std::numeric_limits<double>::infinity();  // but for a few looks
  std::uint64_t num_trials = std::numeric_limits<std::uint64_t>::max();
};

// An even share of what is left of `budget` after `elapsed_s` and `num_trials`, with `num_left`
// token counts to go (this one included), in which the stages from this one on are still to do.
Allowance share(const Budget& budget, double elapsed_s, std::uint64_t num_trials,
                std::uint64_t num_left, bool second_stage);

}  // namespace moetune
