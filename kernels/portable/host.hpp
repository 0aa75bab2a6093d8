// The portable variant's host half, for the code that launches it.
#pragma once

#include <memory>

#include "core/problem.hpp"
#include "core/trial.hpp"
#include "kernels/portable/config.hpp"
#include "kernels/variant.hpp"

namespace moetune {

std::unique_ptr<Variant> make_portable();
// The template argument of a point's kernel. FP8 1 in a bf16 problem means fp8_block scales.
GemmConfig gemm_config(const Problem& problem, Stage stage, const Point& point);

}  // namespace moetune
