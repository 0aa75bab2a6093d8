// The one-launch layer's configuration: host value and template argument at once, and what it is
// launched with. Compiled by the host compiler and by NVRTC.
#pragma once

#include "common/routing.hpp"

namespace moetune::decode {

// Every field is written at every use: an omitted one would silently be 0.
struct Config {
  int block_m;  // token rows of a tile, 1 to 8
  int num_warps;
  int blocks_per_sm;
  int num_stages;
  int step_bytes;  // of each weight row that a stage holds
  int fp8;         // 1: e4m3 weights with block scales, 0: bf16
  int hidden_size, intermediate_size, top_k;
};

constexpr int kChunkBytes = 64;  // of a weight row that one instruction reads
constexpr int kWeightRows = 16;  // of an item: an mma's M
constexpr int kMaxBlockM = 8;    // an mma's N
constexpr int kMaxSlots = 1024;  // that each block sorts for itself
constexpr int kMaxBlocksPerSm = 4;
constexpr int kItemsAtOnce = 32;  // whose sums shared memory holds

constexpr int num_threads(const Config& c) {
  return c.num_warps * 32;
}
constexpr int row_bytes(const Config& c, bool first) {
  return (first ? c.hidden_size : c.intermediate_size) * (c.fp8 ? 1 : 2);
}

// Shared memory, bytes.
constexpr int item_bytes(const Config& c) {  // an item's sums
  return kWeightRows * c.block_m * 4;
}
constexpr int sum_bytes(const Config& c) {  // for two groups of items in turn
  return 2 * kItemsAtOnce * item_bytes(c);
}
constexpr int stage_bytes(const Config& c) {  // of a warp
  return kWeightRows * c.step_bytes;
}
// Stages of a warp that are on their way while others are multiplied: more than 64 KB a
// multiprocessor only queue up in front of memory. All of the ring is used to load GEMM2's weights
// while GEMM1 ends.
constexpr int steady_stages(const Config& c) {
  const int stages = 64 * 1024 / (c.num_warps * c.blocks_per_sm * stage_bytes(c));
  return stages < 1 ? 1 : stages < c.num_stages - 1 ? stages : c.num_stages - 1;
}
constexpr int kStageScaleBytes = 16;  // two scale groups of two row blocks
// A row and what keeps two apart in the banks.
constexpr int row_pitch(const Config& c) {
  const int gemm1 = row_bytes(c, true);
  const int gemm2 = row_bytes(c, false);
  return ((gemm1 > gemm2 ? gemm1 : gemm2) + 127) / 128 * 128 + 64;
}
constexpr int scale_groups(const Config& c) {
  return c.fp8 ? row_pitch(c) / 128 : 0;
}
// Rows of two tiles and their scales. Long bf16 rows stay where they are: L1 holds them as well.
constexpr int rows_bytes(const Config& c) {
  constexpr int kLong = 64 * 1024;
  const int rows = 2 * c.block_m * row_pitch(c);
  if (c.fp8 == 0 && rows > kLong) return 0;
  return rows + 2 * scale_groups(c) * kMaxBlockM * 4;
}
constexpr int smem_bytes(const Config& c) {
  return c.num_warps * c.num_stages * (stage_bytes(c) + (c.fp8 ? kStageScaleBytes : 0)) +
         sum_bytes(c) + rows_bytes(c);
}
// What sorting leaves behind, beside the above: 10 bytes a slot, a few numbers, and alignment.
constexpr int kSortedBytes = kMaxSlots * 10 + 128;

struct Params {
  const void* x;           // bf16 [tokens, H]
  const void* w13;         // bf16 or e4m3 [experts, 2I, H]
  const void* w2;          // [experts, H, I]
  const float* w13_scale;  // [experts, 2I / 128, H / 128]
  const float* w2_scale;   // [experts, H / 128, I / 128]
  ExpertIds ids;
  RoutingWeights weights;
  void* activation;              // bf16 [num_slots, I], sorted by expert
  void* out;                     // bf16 [tokens, H]
  unsigned long long* counters;  // [2]: tickets taken and portions of GEMM1 done, by all launches
                                 // so far, which had one size of grid; 0 at first
  int num_slots;
};

}  // namespace moetune::decode
