// The steps that layers are put together from: sort, x's rows, a GEMM, the activation, the weighted
// sum. Each appends its launches to a program.
#pragma once

#include <cstdint>
#include <optional>

#include "kernels/variant.hpp"
#include "program/builder.hpp"

namespace moetune {

// A plan's GEMM: its kernel, and how it is launched.
struct GemmStep {
  KernelSource source;
  GemmLaunch launch;
  bool fp8() const { return launch.fp8; }
};
// Throws Error(input) where the plan has no such step, or names an unknown variant.
GemmStep gemm_step(const Gpu& gpu, const Problem& problem, Stage stage, const Plan& plan);

// Shared between the steps: names and sizes of the tensors between them.
TensorId tiles_tensor(ProgramBuilder& builder, Stage stage, int block_m);
TensorId tiles_done_tensor(ProgramBuilder& builder);  // of fused GEMMs, at GEMM2's tiles

struct SortStep {
  // For whose tile heights slots are listed, of which one may be null.
  const GemmLaunch* gemm1 = nullptr;
  const GemmLaunch* gemm2 = nullptr;
  // Beside sorting: quantises x for a GEMM1 that gathers rows of fp8, and clears the output for a
  // GEMM2 that adds to it.
  const GemmLaunch* quantises_x_for = nullptr;
  bool clears_out = false;
  bool clears_tiles_done = false;
};
void append_sort(ProgramBuilder& builder, const SortStep& step);

// x in fp8, or copied to the slots' positions, or both: what this GEMM1 wants where it does not
// gather rows of x as they are.
void append_x_rows(ProgramBuilder& builder, const GemmLaunch& gemm1);

// What a GEMM's kernel takes, all bound: GEMM1's result is "gate_up" or the activation in GEMM2's
// format, GEMM2's "y" or the output. It walks the row tiles that were listed for `tiles_of`.
Params<GemmParams> gemm_params(ProgramBuilder& builder, Stage stage, const GemmLaunch& launch,
                               Stage tiles_of);
// As the copy engine reads the weights; nothing where it does not.
std::optional<TensorMapSpec> weight_map(const ProgramBuilder& builder, Stage stage,
                                        const GemmLaunch& launch);
// Tiles that any routing can need.
std::int64_t max_tiles(const ProgramBuilder& builder, Stage stage, const GemmLaunch& launch);
void append_gemm(ProgramBuilder& builder, Stage stage, const GemmStep& step);
// What GEMM1's epilogue left undone of activation and quantisation for a GEMM2 in fp8 or not.
void append_activation(ProgramBuilder& builder, const GemmLaunch& gemm1, bool to_fp8);
// Zeros for a GEMM2 that adds to the output, where no sort does that.
void append_clear(ProgramBuilder& builder);
// The weighted sum of each token's rows of "y".
void append_combine(ProgramBuilder& builder, const GemmLaunch& gemm2);

// Bytes of values with their scales: 1 x 128 for activations, 128 x 128 for weights.
double value_bytes(double count, bool fp8);
double weight_value_bytes(double count, bool fp8);

}  // namespace moetune
