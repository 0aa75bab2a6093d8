// Strategies on recorded searches: what they would have looked at and found, without a GPU.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "report/replay_summary.hpp"
#include "tune/recording.hpp"

namespace moetune {

// Microseconds of the GPU that a first look at a point of `time_us` takes when the fastest so far
// takes `best_us` (0: none): see kReplayCost.
double look_cost_us(double time_us, double best_us);

// One search over all entries of a recording as a session does it: each stage from few to many
// tokens, the reference point and the winners of the token count before first, what a batch
// proposes by predicted time. `random` alone goes in the order drawn: its n-th look is then that of
// n random points for every n. The result has the recording's order.
std::vector<EntryRun> replay(const Recording& recording, const std::string& strategy,
                             std::uint64_t seed);

// All strategies with seeds 0..num_seeds-1, on all cores. Throws Error(usage) for a strategy that
// does not exist.
JournalReplay replay_all(const Recording& recording, std::span<const std::string> strategies,
                         std::uint64_t num_seeds);

}  // namespace moetune
