// Local search over whole layers.
#pragma once

#include <span>
#include <vector>

#include "core/trial.hpp"
#include "tune/proposals.hpp"
#include "tune/runner.hpp"

namespace moetune {

// Layers that a search of their GEMMs by themselves may miss, for those so short that a GEMM's time
// alone says too little: within a layer, beside other kernels, it is up to a microsecond more or
// less. A beam search (Lowerre: The HARPY speech recognition system, 1976): looks at all layers
// that differ from one of the beam by one step of one GEMM's parameter, first from `starts`, layers
// of these two stages, then from the fastest few so far, which differ in their second GEMM; it goes
// on while that gains, for at most six steps. Returns the fastest that were looked at, the best
// first; none for layers above 100 us, where a microsecond does not count. Throws as Runner::run.
std::vector<Plan> climb(Runner& runner, std::span<const Proposals, 2> stages,
                        std::span<const Plan> starts);

}  // namespace moetune
