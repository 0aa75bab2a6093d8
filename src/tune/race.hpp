// The first looks at a stage's candidates: losers stop early.
#pragma once

#include <span>
#include <vector>

#include "core/trial.hpp"
#include "tune/budget.hpp"
#include "tune/proposals.hpp"
#include "tune/runner.hpp"

namespace moetune {

// Looks at every candidate until the allowance is spent; what is clearly slower than the best so
// far, of its FP8 choice, is not timed at length. `seeds` come first, whatever the allowance:
// one-step plans that set the bound, such as the winners of the token count before. While this
// stage's last candidates run, and after them, the first of `later` (may be null) are compiled.
// `by_time` false: nothing is stopped early, for something else than time may win.
std::vector<Trial> race(Runner& runner, Proposals& proposals, std::span<const Plan> seeds,
                        const Allowance& allowance, Proposals* later, bool by_time = true);

}  // namespace moetune
