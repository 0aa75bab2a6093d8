// The steps that layers are put together from: sort, x's rows, a GEMM, the activation, the weighted
// sum. Each appends its launches to a program.
#pragma once

#include <cstdint>
#include <optional>

#include "kernels/common/routing.hpp"
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
  // Beside sorting: makes the rows that this GEMM1 gathers, where they are not x's as they are, and
  // clears the output for a GEMM2 that adds to it.
  const GemmLaunch* makes_x_for = nullptr;
  bool clears_out = false;
  bool clears_tiles_done = false;
  bool clears_tickets = true;
};
void append_sort(ProgramBuilder& builder, const SortStep& step);

// x in fp8, or copied to the slots' positions, or both: what this GEMM1 wants where it does not
// gather rows of x as they are.
void append_x_rows(ProgramBuilder& builder, const GemmLaunch& gemm1);

// What a GEMM's kernel takes, all bound but the tickets: GEMM1's result is "gate_up" or the
// activation in GEMM2's format, GEMM2's "y" or the output. It walks the row tiles that were listed
// for `tiles_of`.
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
// What follows GEMM2: the weighted sum of each token's rows of "y", where GEMM2 did not add them,
// or the copy to an output whose rows have gaps.
void append_end(ProgramBuilder& builder, const GemmLaunch& gemm2);

// x and the output for kernels that take no pitches: the caller's tensors, or copies of them.
TensorId x_without_gaps(ProgramBuilder& builder);
TensorId out_without_gaps(ProgramBuilder& builder);
void append_x_without_gaps(ProgramBuilder& builder);  // nothing where there are no gaps
void append_out_with_gaps(ProgramBuilder& builder);

// The caller's ids and routing weights, within a kernel's parameters.
template <typename P>
void bind_ids(const ProgramBuilder& builder, Params<P>& params, ExpertIds& ids) {
  const CallLayout& layout = builder.layout();
  params.bind_within(ids.ids, tensor::topk_ids, Access::read);
  if (layout.expert_map_size > 0) params.bind_within(ids.map, tensor::expert_map, Access::read);
  ids.map_size = narrow(layout.expert_map_size);
  ids.are_int64 = layout.int64_ids ? 1 : 0;
  ids.num_experts = narrow(builder.shape().num_experts);
}
template <typename P>
void bind_weights(const ProgramBuilder& builder, Params<P>& params, RoutingWeights& weights) {
  params.bind_within(weights.weights, tensor::topk_weights, Access::read);
  weights.are_bf16 = builder.layout().bf16_topk_weights ? 1 : 0;
}

// Bytes of values with their scales: 1 x 128 for activations, 128 x 128 for weights.
double value_bytes(double count, bool fp8);
double weight_value_bytes(double count, bool fp8);

}  // namespace moetune
