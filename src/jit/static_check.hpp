// What can be told about a step before anything is launched: does it compile, and does the code it
// becomes fit the GPU. The offline and the device evaluator reject the same points for the same
// reasons because both ask here.
#pragma once

#include <memory>

#include "core/gpu.hpp"
#include "core/problem.hpp"
#include "core/trial.hpp"
#include "jit/compiler.hpp"

namespace moetune {

// The stage that a step of this op runs; throws Error(input) for an op that is neither GEMM.
Stage stage_of(const Step& step);

// The kernel that `step` needs. Throws Error(input) for an unknown variant or a point that lacks a
// parameter.
KernelSource source_of(const Gpu& gpu, const Problem& problem, const Step& step);

// Compiles the step (waiting for the compiler) and checks what came out. The constraints of the
// variant's space are the search's to check: many only keep it from looking at hopeless points.
// Adds to trial.compile_ms and raises trial.registers, spill_bytes and smem_bytes to this kernel's.
// Returns the cubin of a fit step. Otherwise returns null and sets the trial's
//   status rejected        rule: "unsupported", "shared_memory" or one of resource_defect()'s;
//                          reason: with the numbers
//   status compile_failed  reason: the first line of the compiler's error
// `problem.num_tokens` is the trial's. Throws only as source_of does and for I/O.
std::shared_ptr<const Cubin> check_static(const Gpu& gpu, const Problem& problem, const Step& step,
                                          Compiler& compiler, Trial& trial);

}  // namespace moetune
