// What a call of the MXFP8 layer launches, and of its GEMMs alone.
#pragma once

#include "core/gpu.hpp"
#include "kernels/journey/mxfp8_config.hpp"
#include "program/program.hpp"

namespace moetune {

// Tensors that these programs have beside those of every layer. w13 and w2 are e4m3, w13_scale and
// w2_scale their e8m0 scales [rows, mx_scale_pitch(columns)].
//   x_q, x_scale                    MXFP8 [T, H]
//   activation                      bf16 [slots, I], packed
//   activation_q, activation_scale  MXFP8 [slots, I], packed
//   y                               bf16 or fp32 [slots, H], packed
// gemm1 finds x_q made by the setup; its result is the activation in bf16. gemm2 reads
// activation_q, which whoever measures it puts there; the result is y. `configs`: of GEMM1 and
// GEMM2; a stage looks at its own.
LayerProgram mxfp8_program(const Gpu& gpu, const Problem& problem, Stage stage,
                           const Mxfp8Config (&configs)[2]);

}  // namespace moetune
