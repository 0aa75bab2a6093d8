// What the kernels around the GEMMs are launched with: the same structs for the host and for NVRTC.
#pragma once

#include "common/params.hpp"

namespace moetune {

constexpr int kClearBytes = 64 * 1024;

struct SortParams {
  const int* topk_ids;  // [num_slots]
  int* sorted_slots;    // [num_slots]
  int* positions;       // [num_slots] of each slot
  int* counts;          // [blocks, num_experts] where several blocks sort
  RowTile* tiles[2];    // GEMM1's and GEMM2's
  int* num_tiles[2];    // [1]
  int* tiles_done;      // as GemmParams::tiles_done, of GEMM2's tiles; or null
  int block_m[2];       // tile heights; 0: not wanted
  int group_m[2];       // row tiles of an expert that are walked together, at most
  int num_slots;
  int num_experts;
  int slots_a_block;  // where several blocks sort
  // Blocks of a launch, in this order.
  int sorting;
  int quantising;
  void* clear;  // set to zero by the remaining blocks, kClearBytes each
  long long clear_bytes;
};

struct ActivateParams {
  const void* in;  // Input::bf16: [rows, columns]; gate_up: [rows, 2 columns]; partial: fp32
                   // [splits, rows, 2 columns]
  void* out;       // e4m3 [rows, columns], or bf16 when the kernel does not quantise
  float* scale;    // block: [rows, columns / 128] or [columns / 128, scale_pitch]; tensor: [rows]
  int rows;
  int columns;  // a multiple of 8; of 128 for block scales
  int splits;
  int scale_pitch;       // 0: scales lie by rows
  const int* positions;  // row r goes to rows positions[r * top_k...] of `out`
  int top_k;             // 0: it stays where it is
  int after_gemm1;       // 1: the next kernel is GEMM2, which may start at once: the tile list it
                         // reads before it waits was there when GEMM1 let this kernel start
};

// The weighted sum that ends a layer: out[t] = sum_k weight[t, k] * y[positions[t * top_k + k]].
struct CombineParams {
  const void* y;              // packed: bf16 [num_slots, columns], or fp32 [splits, same]
  const int* positions;       // [num_slots] of each slot
  const float* topk_weights;  // [num_tokens, top_k]
  void* out;                  // bf16 [num_tokens, columns]
  int num_tokens;
  int top_k;
  int columns;  // a multiple of 8
  int splits;   // 0: y is bf16
};

}  // namespace moetune
