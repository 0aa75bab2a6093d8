// What the kernels around the GEMMs are launched with: the same structs for the host and for NVRTC.
#pragma once

#include "common/params.hpp"
#include "common/routing.hpp"

namespace moetune {

constexpr int kClearBytes = 64 * 1024;

constexpr int kNumTickets = 4;  // of two GEMMs, two each

struct SortParams {
  ExpertIds ids;
  RoutingWeights weights;
  float* fp32_weights;  // [num_slots] the same, where they are bf16: what the kernels that follow
                        // read; else null
  int* sorted_slots;    // [num_slots]; those of other GPUs are left out
  int* positions;       // [num_slots] of each slot; -1 where it is another GPU's
  int* counts;          // [blocks, num_experts] where several blocks sort
  RowTile* tiles[2];    // GEMM1's and GEMM2's
  int* num_tiles[2];    // [1]
  int* tiles_done;      // as GemmParams::tiles_done, of GEMM2's tiles; or null
  int block_m[2];       // tile heights; 0: not wanted
  int group_m[2];       // row tiles of an expert that are walked together, at most
  int* tickets;         // [kNumTickets] set to 0 for the GEMMs; or null
  int num_slots;
  int slots_a_block;  // where several blocks sort
  // Blocks of a launch, in this order.
  int sorting;
  int beside;   // that copy or quantise x
  void* clear;  // set to zero by the remaining blocks, kClearBytes each
  long long clear_bytes;
};

struct ActivateParams {
  const void* in;  // Input::bf16: [rows, columns]; gate_up: [rows, 2 columns]; partial: fp32
                   // [splits, rows, 2 columns]
  void* out;       // e4m3 [rows, columns], or bf16 when the kernel does not quantise
  float* scale;    // block: [rows, columns / 128] or [columns / 128, scale_pitch]; tensor: [rows]
  int rows;
  int columns;    // a multiple of 8; of 128 for block scales
  int in_pitch;   // elements from a row to the next, of Input::bf16
  int out_pitch;  // and of what is written
  int splits;
  int scale_pitch;       // 0: scales lie by rows
  const int* positions;  // row r goes to rows positions[r * top_k...] of `out`, but those below 0
  int top_k;             // 0: it stays where it is
  int after_gemm1;       // 1: the next kernel is GEMM2, which may start at once: the tile list it
                         // reads before it waits was there when GEMM1 let this kernel start
};

// The weighted sum that ends a layer: out[t] = sum_k weight[t, k] * y[positions[t * top_k + k]].
struct CombineParams {
  const void* y;              // packed: bf16 [num_slots, columns], or fp32 [splits, same]
  const int* positions;       // [num_slots] of each slot; below 0: it adds nothing
  const float* topk_weights;  // [num_tokens, top_k]
  void* out;                  // bf16 [num_tokens, columns], rows out_pitch elements apart
  int num_tokens;
  int top_k;
  int columns;  // a multiple of 8
  int out_pitch;
  int splits;  // 0: y is bf16
};

}  // namespace moetune
