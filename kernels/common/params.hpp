// What kernels are launched with: the same structs for the host and for NVRTC, so this includes
// nothing.
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
