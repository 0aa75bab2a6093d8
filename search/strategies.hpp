// What the registry lists: one maker a strategy, each in the file of its name. `legal` holds the
// points of `space` that break no rule, in the space's order.
#pragma once

#include "search/strategy.hpp"

namespace moetune {

using StrategyMaker = std::unique_ptr<Strategy>(const SearchSpace& space, std::vector<Point> legal,
                                                const StrategyOptions& options);

// All legal points in a seeded random order, so that an early stop has seen every corner.
StrategyMaker make_grid;
// `count` distinct legal points, uniform over the legal ones, or all when there are fewer.
// Throws Error(usage) for a count of 0.
StrategyMaker make_random;
// The start point, then every legal point that differs from it in one parameter, parameter by
// parameter. A start that is illegal or off the grid moves to the nearest legal point (fewest
// parameters changed, then fewest steps along their values), which note() tells. Parameters that
// the start lacks take their reference value. Throws Error(input) for one that the space lacks.
StrategyMaker make_ablation;
// The analytic model's order, corrected by what is measured here and was at neighbouring token
// counts; in batches, until a further batch is not worth its time.
StrategyMaker make_guided;
// Differential evolution, from the literature; starts again from new points where it got stuck.
StrategyMaker make_differential_evolution;

}  // namespace moetune
