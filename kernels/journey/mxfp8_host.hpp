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

// How 32 of K are multiplied.
enum class Mxfp8Path {
  native,         // sm_120: an mma that takes the scales
  tensor_memory,  // sm_100: tcgen05.mma, which takes them from tensor memory
  scaled,         // sm_89: an mma of e4m3, scaled in fp32
  widened,  // sm_90, sm_100: the same, of operands widened to f16, for mma takes no e4m3 there
};
std::string_view to_string(Mxfp8Path path);
Mxfp8Path mxfp8_path(const Gpu& gpu, const Mxfp8Config& config);

// The space of GEMM1 (with SwiGLU in its epilogue) or GEMM2 on `gpu`: some 25 points are legal, few
// enough to try all. problem.dtype is not looked at.
SearchSpace mxfp8_space(const Gpu& gpu, const Problem& problem, Stage stage);
Mxfp8Config mxfp8_config(const Problem& problem, Stage stage, const Point& point);
KernelSource mxfp8_gemm_kernel(const Mxfp8Config& config);

}  // namespace moetune
