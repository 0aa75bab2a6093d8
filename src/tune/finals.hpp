// Defensible winners: the best are measured again,
// interleaved, and what is within noise goes to a fixed order of preference.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/objective.hpp"
#include "core/trial.hpp"
#include "kernels/variant.hpp"
#include "tune/proposals.hpp"
#include "tune/runner.hpp"

namespace moetune {

// A GEMM's look as it compares with others of its stage: 1 us more for SwiGLU or the weighted sum
// in a kernel of its own, which costs a layer that much more than it does a GEMM timed by itself
// (1.0 to 2.4 us in five searches on an H200, results/NVIDIA_H200/notes.md). Else as it is.
Trial as_in_layer(Trial trial);

// The first `limit` of these settled trials that are within `band` (1.1: 10 %) of the fastest, the
// fastest, the first of each FP8 choice, and the first three kernels, with two orders of their
// tiles each, of each variant and choice of FUSE_COMBINE and GATHER up to a launch's time further
// away, or where these differ from the fastest's within 8 %: what they cost or save around a GEMM
// shows only in the whole layer.
std::vector<Trial> pick(std::span<const Trial> trials, std::size_t limit, double band);

// Leaves what costs at most 1 % more than the least in `objective`, and drops what has no such
// cost; with `by_fp8` each FP8 choice by itself, for errors of GEMMs are against references in
// their own precision. time: leaves all, for settle() decides.
void keep_best(std::vector<Trial>& trials, Objective objective, bool by_fp8);

// Measures in short rounds, from the second on in turns, so that clocks hit all alike. After
// each, what is clearly slower than the fastest drops out: of whole layers, or of the GEMMs of its
// FP8 choice and, where those are within 8 %, its choice of FUSE_COMBINE and GATHER. Returns those
// that stayed ok, each with its rounds' times averaged, but without the first, where clocks rise,
// and rounds whose clock was 5 % off the plan's others: their samples are counted as discarded.
// With `by_time` those that dropped out are marked as screened out, for they saw other clocks than
// those that stayed; else time does not decide, and they count.
std::vector<Trial> measure_again(Runner& runner, std::span<const Plan> plans, Stage stage,
                                 std::int64_t num_tokens, bool by_time);

// 95 % confidence interval of a plan's median over its thorough rounds.
struct TimeInterval {
  double low_us = 0;
  double high_us = 0;
};
// From each round's p10..p90 and number of samples, as if they were normal; at least what the
// rounds differ by, for clocks drift between them. At least one round.
TimeInterval confidence(std::span<const Timing> rounds);

// Whether a difference is within noise: medians within 1 %, or within 2 % and inside each other's
// p10..p90.
bool is_tie(const Timing& timing, const Timing& best);

// Leaves the trials that have a full time: first those tied with the fastest, of which the first
// wins, in an order that noise does not change: `pinned` (may be null), then those within 0.5 %, by
// order of variants, less shared memory, fewer registers, key; then the others by time. Returns the
// keys of those tied with the winner.
std::vector<std::string> settle(std::vector<Trial>& trials, const Plan* pinned,
                                std::span<const Variant* const> variants);

}  // namespace moetune
