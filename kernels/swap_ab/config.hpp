// The swapped grouped GEMM's configuration: host value and template argument at once.
// Compiled by the host compiler and by NVRTC.
#pragma once

#include "common/params.hpp"

namespace moetune::swap_ab {

// Every field is written at every use: an omitted one would silently be 0.
struct Config {
  int block_m, block_n;  // tile: rows (a WGMMA's N), weight rows; K goes in steps of 128 bytes
  int num_warps;         // that multiply, in warpgroups of four
  int num_stages;
  int load_steps;  // stages whose loads start together
  int blocks_per_sm;
  int fp8;  // 1: e4m3 operands, 0: bf16
  Scales scales;
  Output output;
  int size_n;  // weight rows an expert has: 2I (gemm1) or H (gemm2)
  int size_k;  // H (gemm1) or I (gemm2)
  int top_k;
  int gather;  // 1: gemm1, row = slot / top_k; 0: gemm2, rows lie packed
};

constexpr int kRowBytes = 128;      // of K in a stage: what one swizzle spans
constexpr int kWarpgroup = 128;     // threads
constexpr int kWarpgroupRows = 64;  // weight rows of a WGMMA

constexpr bool is_fused(const Config& c) {
  return c.output == Output::swiglu || c.output == Output::swiglu_fp8;
}
constexpr int step_k(const Config& c) {
  return c.fp8 ? kRowBytes : kRowBytes / 2;
}
constexpr int math_warpgroups(const Config& c) {
  return c.num_warps / 4;
}
// The multiplying warps, and one that loads.
constexpr int num_threads(const Config& c) {
  return (c.num_warps + 1) * 32;
}
// Pieces of 64 weight rows that a warpgroup multiplies; fused: gate pieces, then up pieces.
constexpr int num_chunks(const Config& c) {
  return c.block_n / (kWarpgroupRows * math_warpgroups(c));
}
// Rows of the weights that one copy fetches: gate and up apart, and few where copies of stages that
// are loaded together take turns.
constexpr int weight_box_rows(const Config& c) {
  if (c.load_steps > 1) return kWarpgroupRows;
  return is_fused(c) ? c.block_n / 2 : c.block_n;
}
constexpr int tile_columns(const Config& c) {
  return is_fused(c) ? c.block_n / 2 : c.block_n;
}
constexpr int out_columns(const Config& c) {
  return is_fused(c) ? c.size_n / 2 : c.size_n;
}
// Registers of a thread that hold sums, and products that block scales are yet to be applied to.
constexpr int accumulators(const Config& c) {
  return num_chunks(c) * c.block_m / 2 * (c.scales == Scales::block ? 2 : 1);
}

// Shared memory, bytes: the stages' operands, barriers, and where the epilogue quantises each
// warp's largest values, for two tiles in turn.
constexpr int operand_bytes(const Config& c) {
  return (c.block_m + c.block_n) * kRowBytes;
}
constexpr int kStageControlBytes = 32;  // two barriers and what tile begins
constexpr int amax_bytes(const Config& c) {
  return c.output == Output::swiglu_fp8 ? 2 * c.num_warps * c.block_m * 4 : 0;
}
constexpr int smem_bytes(const Config& c) {
  return c.num_stages * (operand_bytes(c) + kStageControlBytes) + amax_bytes(c);
}

}  // namespace moetune::swap_ab
