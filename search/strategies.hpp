// What the registry lists: one maker a strategy, each in the file of its name.
#pragma once

#include "search/strategy.hpp"

namespace moetune {

// All legal points in a seeded random order, so that an early stop has seen every corner.
std::unique_ptr<Strategy> make_grid(const SearchSpace& space, const StrategyOptions& options);
// `count` distinct legal points, uniform over the legal ones, or all when there are fewer.
// Throws Error(usage) for a count of 0.
std::unique_ptr<Strategy> make_random(const SearchSpace& space, const StrategyOptions& options);
// The start point, then every legal point that differs from it in one parameter, parameter by
// parameter. A start that is illegal or off the grid moves to the nearest legal point (fewest
// parameters changed, then fewest steps along their values), which note() tells. Parameters that
// the start lacks take their reference value. Throws Error(input) for one that the space lacks.
std::unique_ptr<Strategy> make_ablation(const SearchSpace& space, const StrategyOptions& options);

}  // namespace moetune
