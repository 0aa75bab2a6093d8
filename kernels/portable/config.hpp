// The portable grouped GEMM's configuration: host value and template argument at once.
// Compiled by the host compiler and by NVRTC.
#pragma once

#include "common/params.hpp"

namespace moetune {

// Every field is written at every use: an omitted one would silently be 0.
struct GemmConfig {
  int block_m, block_n, block_k;  // tile: rows, weight rows, K elements
  int num_warps, num_stages;
  int fp8;  // 1: e4m3 operands, 0: bf16
  Scales scales;
  Output output;
  int size_n;  // weight rows an expert has: 2I (gemm1) or H (gemm2)
  int size_k;  // H (gemm1) or I (gemm2)
  int top_k;
  int gather;  // 1: rows are gathered, row = slot / top_k; 0: they lie packed
};

constexpr int row_bytes(const GemmConfig& c) {
  return c.block_k * (c.fp8 ? 1 : 2);
}
constexpr int num_threads(const GemmConfig& c) {
  return c.num_warps * 32;
}

// Warps along M; the rest lie along N. The split with the least shared-memory traffic (the most
// nearly square warp tile) among those whose warp tiles are multiples of 16 rows and of
// `min_warp_n` columns; 0 when there is none.
constexpr int min_warp_n(const GemmConfig& c) {
  return c.output == Output::swiglu ? 16 : 8;
}
constexpr int warps_m(const GemmConfig& c) {
  int best = 0;
  int best_cost = 0;
  for (int m = 1; m <= c.num_warps; m *= 2) {
    const int n = c.num_warps / m;
    if (c.block_m % (16 * m) != 0 || c.block_n % (min_warp_n(c) * n) != 0) continue;
    const int cost = c.block_m / m + c.block_n / n;
    if (best == 0 || cost < best_cost) {
      best = m;
      best_cost = cost;
    }
  }
  return best;
}

// Scale groups of 128 K elements that one K step covers.
constexpr int scale_groups(const GemmConfig& c) {
  return c.scales != Scales::block ? 0 : (c.block_k < kScaleGroup ? 1 : c.block_k / kScaleGroup);
}
// 128-row weight blocks that one tile's columns touch (gate and up apart when fused).
constexpr int weight_scale_blocks(const GemmConfig& c) {
  const int columns = c.output == Output::swiglu ? c.block_n / 2 : c.block_n;
  const int blocks = columns <= kScaleGroup ? 1 : columns / kScaleGroup;
  return c.output == Output::swiglu ? 2 * blocks : blocks;
}

// Shared memory, bytes: per stage the A and B tiles and the scales, then the tile's slots.
constexpr int scale_bytes(const GemmConfig& c) {
  const int floats = scale_groups(c) * (c.block_m + weight_scale_blocks(c));
  return (floats * 4 + 127) / 128 * 128;
}
constexpr int stage_bytes(const GemmConfig& c) {
  return (c.block_m + c.block_n) * row_bytes(c) + scale_bytes(c);
}
constexpr int smem_bytes(const GemmConfig& c) {
  return c.num_stages * stage_bytes(c) + c.block_m * 4;
}

// fp32 accumulators a thread holds.
constexpr int accumulators(const GemmConfig& c) {
  return c.block_m * c.block_n / num_threads(c);
}

}  // namespace moetune
