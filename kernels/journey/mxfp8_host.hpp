// Host half of the MXFP8 GEMM (mxfp8_gemm.cu): space, rules, compilation. No CUDA here.
#pragma once

#include <string_view>

#include "core/gpu.hpp"
#include "core/point.hpp"
#include "core/problem.hpp"
#include "core/trial.hpp"
#include "kernels/journey/mxfp8_config.hpp"
#include "kernels/variant.hpp"

namespace moetune {

// How an architecture multiplies 32 of K.
enum class Mxfp8Path {
  native,   // sm_120: an mma that takes the scales
  scaled,   // sm_89: an mma of e4m3, scaled in fp32
  widened,  // others: the same, of operands widened to f16, for their mma takes no e4m3
};
Mxfp8Path mxfp8_path(const Gpu& gpu);
std::string_view to_string(Mxfp8Path path);

// The legal points of GEMM1 (with SwiGLU in its epilogue) or GEMM2 on `gpu`: at most some 25, few
// enough to try all. problem.dtype is not looked at.
SearchSpace mxfp8_space(const Gpu& gpu, const Problem& problem, Stage stage);
GemmConfig mxfp8_config(const Problem& problem, Stage stage, const Point& point);
KernelSource mxfp8_gemm_kernel(const GemmConfig& config);

}  // namespace moetune
