// The Hopper grouped GEMM's configuration: host value and template argument at once.
// Compiled by the host compiler and by NVRTC.
#pragma once

#include "common/params.hpp"

namespace moetune {

// Every field is written at every use: an omitted one would silently be 0.
struct HopperConfig {
  int block_m, block_n;  // tile: rows, weight rows; K goes in steps of 128 bytes
  int num_warps;         // that multiply, in warpgroups of four
  int ping_pong;         // 1: a warpgroup has a tile of its own; 0: they share one
  int cluster;           // 2: two blocks, one tile below or beside the other, share loads;
                         // packed rows only
  int num_stages;
  int blocks_per_sm;
  int fp8;  // 1: e4m3 operands, 0: bf16
  Scales scales;
  Output output;
  int size_n;  // weight rows an expert has: 2I (gemm1) or H (gemm2)
  int size_k;  // H (gemm1) or I (gemm2)
  int top_k;
  int gather;  // 1: rows are gathered, row = slot / top_k; 0: they lie packed
};

constexpr int kRowBytes = 128;          // of K in a stage: what one swizzle spans
constexpr int kWarpgroup = 128;         // threads
constexpr int kWarpgroupRows = 64;      // of a WGMMA
constexpr int kMaxScaledColumns = 128;  // of a temporary that block scales are applied to

constexpr bool is_fused(const HopperConfig& c) {
  return c.output == Output::swiglu || c.output == Output::swiglu_fp8;
}
constexpr int step_k(const HopperConfig& c) {
  return c.fp8 ? kRowBytes : kRowBytes / 2;
}

// Warpgroups that multiply; how a tile is shared along M and along N, and how many times 64 rows a
// warpgroup takes of it.
constexpr int math_warpgroups(const HopperConfig& c) {
  return c.num_warps / 4;
}
constexpr int warpgroups_m(const HopperConfig& c) {
  return c.ping_pong ? 1 : c.block_m / kWarpgroupRows;
}
constexpr int warpgroups_n(const HopperConfig& c) {
  return c.ping_pong ? 1 : math_warpgroups(c) / warpgroups_m(c);
}
constexpr int num_waves(const HopperConfig& c) {
  return c.ping_pong ? c.block_m / kWarpgroupRows : 1;
}
// Rows of the weights that one copy fetches: gate and up apart, or each block's half of a
// cluster's.
constexpr int weight_box_rows(const HopperConfig& c) {
  return is_fused(c) || c.cluster > 1 ? c.block_n / 2 : c.block_n;
}
// Warps that must have read a stage before it is loaded again.
constexpr int readers(const HopperConfig& c) {
  return (c.ping_pong ? 4 : c.num_warps) * c.cluster;
}
constexpr int num_threads(const HopperConfig& c) {
  return (math_warpgroups(c) + 1) * kWarpgroup;
}
// Weight rows (columns of the product) that a warpgroup multiplies, and how many WGMMA share them:
// one where they lie together and no temporary is needed.
constexpr int warpgroup_columns(const HopperConfig& c) {
  return c.block_n / warpgroups_n(c);
}
constexpr int num_chunks(const HopperConfig& c) {
  if (is_fused(c)) return warpgroups_n(c) > 1 || c.scales == Scales::block ? 2 : 1;
  if (c.scales != Scales::block || warpgroup_columns(c) <= kMaxScaledColumns) return 1;
  return warpgroup_columns(c) / kMaxScaledColumns;
}
constexpr int tile_columns(const HopperConfig& c) {
  return is_fused(c) ? c.block_n / 2 : c.block_n;
}
constexpr int out_columns(const HopperConfig& c) {
  return is_fused(c) ? c.size_n / 2 : c.size_n;
}

// Registers: what a block is launched with goes to the warpgroups that multiply, but for what the
// loading one keeps.
constexpr int launch_registers(const HopperConfig& c) {
  const int registers = 65536 / c.blocks_per_sm / num_threads(c) / 8 * 8;
  return registers < 248 ? registers : 248;
}
constexpr int kLoadRegisters = 40;
constexpr int math_registers(const HopperConfig& c) {
  const int pool = launch_registers(c) * num_threads(c) - kLoadRegisters * kWarpgroup;
  const int registers = pool / (math_warpgroups(c) * kWarpgroup) / 8 * 8;
  return registers < 240 ? registers : 240;
}
constexpr int accumulators(const HopperConfig& c) {
  const int scaled = c.scales == Scales::block ? warpgroup_columns(c) / num_chunks(c) / 2 : 0;
  return num_waves(c) * warpgroup_columns(c) / 2 + scaled;
}

// Rows of activations that one copy fetches.
constexpr int kRowBoxRows = kWarpgroupRows;

// Shared memory, bytes: the stages' operands, and barriers.
constexpr int operand_bytes(const HopperConfig& c) {
  return (c.block_m + c.block_n) * kRowBytes;
}
constexpr int kStageControlBytes = 48;  // three barriers and what tile begins
constexpr int kControlBytes = 48;       // next tiles, whose turn it is, and the end
constexpr int smem_bytes(const HopperConfig& c) {
  return c.num_stages * (operand_bytes(c) + kStageControlBytes) + kControlBytes;
}

}  // namespace moetune
