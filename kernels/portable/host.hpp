// The portable variant's host half, for the code that launches it.
#pragma once

#include <memory>
#include <string>

#include "core/problem.hpp"
#include "core/trial.hpp"
#include "kernels/portable/config.hpp"
#include "kernels/variant.hpp"

namespace moetune {

std::unique_ptr<Variant> make_portable();
// The template argument of a point's kernel. FP8 1 in a bf16 problem means fp8_block scales.
GemmConfig gemm_config(const Problem& problem, Stage stage, const Point& point);

// What small_kernels.cu's `activate` reads (bf16 rows; bf16 gate and up halves; their fp32 partial
// sums) and writes.
enum class ActivateInput { bf16, gate_up, partial };
enum class ActivateOutput { bf16, fp8_block, fp8_tensor };
std::string activate_expression(ActivateInput input, ActivateOutput output);

// Every kernel of small_kernels.cu that a dtype needs, and the reference's.
KernelSource small_kernels(Dtype dtype);
KernelSource reference_kernels();

}  // namespace moetune
