// What the GEMMs are launched with: the same structs for the host and for NVRTC, so this includes
// nothing. What only the kernels around them take is in support/params.hpp, so that a change there
// leaves the GEMMs' sources, and what was tuned with them, as they are.
//
// slot = token * top_k + choice. The sort kernel groups slots by expert without padding; a slot's
// place in that order is its position. GEMM1 gathers rows of x by slot; everything after it lies in
// order of positions, "packed", until the weighted sum takes it back to tokens.
#pragma once

namespace moetune {

// How fp32 scales apply to e4m3 operands.
enum class Scales : int {
  none,    // bf16 operands
  block,   // activations 1x128 along K, weights 128x128
  tensor,  // one per activation row, one per expert's weight matrix
};
constexpr int kScaleGroup = 128;

// What happens to the accumulators.
enum class Output : int {
  bf16,          // rounded and stored
  swiglu,        // silu(gate) * up in registers, rounded and stored: half the columns
  swiglu_fp8,    // the same, quantised to e4m3 with a scale for 128 columns
  partial,       // fp32 partial sums of one K split; the next kernel adds them up
  weighted_sum,  // times the slot's routing weight, rounded to bf16 and added to its token's row
};

// A row tile: at most BLOCK_SIZE_M consecutive positions of one expert.
struct RowTile {
  int expert;
  int first;     // position
  int num_rows;  // at least 1
  int group;     // tiles walked together (common/walk.cuh): how many << 16 | this one's number
};

struct GemmParams {
  const void* a;  // [rows, size_k] bf16 or e4m3
  const void* w;  // [experts, size_n, size_k]
  void* out;      // [num_slots, columns], or fp32 [split_k, num_slots, size_n]; weighted_sum: bf16
                  // [tokens, columns], zeros when the kernel starts
  float* out_scale;      // where the epilogue quantises: [columns / 128, scale_pitch]
  const float* a_scale;  // block: [rows, size_k / 128], packed rows' as out_scale; tensor: [rows]
  const float* w_scale;  // block: [experts, size_n / 128, size_k / 128]; tensor: [experts]
  const int* sorted_slots;    // [num_slots] the slot at each position
  const float* topk_weights;  // [num_slots], for the weighted sum
  const RowTile* tiles;       // [*num_tiles]
  const int* num_tiles;
  int num_slots;
  int scale_pitch;   // of packed rows' block scales
  int column_major;  // 1: a column of tiles after the other, 0: by RowTile::group
  int split_k;
  int* tickets;     // persistent kernels: tiles and blocks counted, 0 between launches: [2]
  int* tiles_done;  // joined GEMMs: [num_slots] at a row tile's first position, GEMM1's tiles times
                    // warps that are done; the sort sets it to 0
};

}  // namespace moetune
