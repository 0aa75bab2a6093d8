// Which pairs of GEMMs are worth finals as whole layers.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/trial.hpp"
#include "tune/runner.hpp"

namespace moetune {

// Rounds of layers that promising_pairs may take; finals begin with the next.
inline constexpr int kPairRounds = 2;

// Pairs of a first and a second GEMM (plans of one step each, the best first) of the same FP8
// choice. Where they are few: all. Otherwise what a round, in turns, of each first one with the
// best second one and each second one with the best first one tells: a layer's time is nearly the
// sum of what its GEMMs take in layers, so the pairs whose sum is least, and within 3 % of it, go
// on. In recorded searches on an H200 that found the fastest of all pairs within 0.05 % on
// average, 1.3 % at worst, with 30 % of the measurements (results/NVIDIA_H200/notes.md). Throws as
// Runner::run.
std::vector<Plan> promising_pairs(Runner& runner, std::span<const Plan> firsts,
                                  std::span<const Plan> seconds, std::int64_t num_tokens);

// All pairs of the same FP8 choice, in order.
std::vector<Plan> all_pairs(std::span<const Plan> firsts, std::span<const Plan> seconds);

}  // namespace moetune
