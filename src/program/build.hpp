// From a plan to what it launches.
#pragma once

#include "core/gpu.hpp"
#include "program/program.hpp"

namespace moetune {

// The program of one call of `stage` with problem.num_tokens tokens.
//   layer: everything, sort included
//   gemm1: quantising or packing of x, GEMM1 and its activation; `plan` may lack gemm2
//   gemm2: GEMM2 and the weighted sum on the activation, which whoever measures it puts there, in
//          "activation", or "activation_q" and "activation_scale"; `plan` may lack gemm1
// `layout` says how the caller's tensors lie: rows with gaps are copied where a kernel cannot read
// or write them, but for the weights', which only kernels that use the copy engine can
// (GemmLaunch). Throws Error(input) for a plan that lacks a step of its stage, names an unknown
// variant or has a GEMM2 without a time of its own, and for more experts or slots than the sort
// holds.
LayerProgram build(const Gpu& gpu, const Problem& problem, const Plan& plan, Stage stage,
                   const CallLayout& layout = {});

}  // namespace moetune
