// Whether a plan may be run in this process.
#pragma once

#include "core/gpu.hpp"
#include "core/problem.hpp"
#include "core/trial.hpp"
#include "jit/compiler.hpp"

namespace moetune {

// Throws Error(failed) saying which step of a layer's plan is missing, breaks a rule of its
// variant, does not compile, does not fit the GPU, or does not go with the other: a kernel that
// hangs would stop everything.
void check_plan(const Gpu& gpu, const Problem& problem, const Plan& plan, Compiler& compiler);

}  // namespace moetune
