// What the MXFP8 GEMMs share: which tile a thread block takes, and how the rows of a K step and
// their scales come into shared memory. Rows, tiles and pipeline are the portable kernel's
// (portable/moe_gemm.cu): cp.async, 16-byte chunks XOR-swizzled.
#pragma once

#include "common/params.hpp"
#include "common/ptx.cuh"
#include "common/walk.cuh"
#include "journey/mxfp8_config.hpp"

namespace moetune_journey {

using namespace moetune;

// Chunk of 16 bytes -> where it lies in its row.
__device__ __forceinline__ int swizzle(int row, int chunk) {
  return chunk ^ (row & 7);
}

template <Mxfp8Config C>
struct Mxfp8Tile {
  static constexpr bool kFused = C.output == Output::swiglu;
  static constexpr int kThreads = num_threads(C);
  static constexpr int kChunks = C.block_k / 16;
  static constexpr int kOutColumns = kFused ? C.size_n / 2 : C.size_n;
  static constexpr int kTileColumns = kFused ? C.block_n / 2 : C.block_n;
  static constexpr int kColumnTiles = (kOutColumns + kTileColumns - 1) / kTileColumns;
  static constexpr int kNumSteps = (C.size_k + C.block_k - 1) / C.block_k;
  static constexpr int kTileRows = C.block_m + C.block_n;
  static constexpr int kWords = C.block_k / kMxWordK;  // of scales, a row and stage
  static constexpr int kScalePitch = mx_scale_pitch(C.size_k);
  // A thread's share of the loads: one chunk column, every kLoadRows-th row; items of scales, of
  // which number i is word i % kWords of tile row i / kWords, A's rows first.
  static constexpr int kLoadRows = kThreads / kChunks;
  static constexpr int kALoads = (C.block_m + kLoadRows - 1) / kLoadRows;
  static constexpr int kBLoads = (C.block_n + kLoadRows - 1) / kLoadRows;
  static constexpr int kScaleItems = kTileRows * kWords;
  static constexpr int kScaleLoads = (kScaleItems + kThreads - 1) / kThreads;
  static_assert(kChunks >= 8 && kThreads % (kChunks * 8) == 0 && C.size_k % kMxBlockK == 0,
                "the host's rules let this pass");

  int expert, first, num_rows;  // as in RowTile
  int column0;                  // first output column
  int load_row, load_chunk;
  u32 a_offset[kALoads];  // in 16 bytes
  bool a_valid[kALoads];
  const u8* a_base;
  const u8* w_base;
  const u8* scale_source[kScaleLoads];
  bool scale_valid[kScaleLoads];

  // False for blocks beyond the tiles that this routing has. `tile_rows`: shared, [block_m].
  __device__ __forceinline__ bool find(const Mxfp8Params& params, int* tile_rows) {
    const GemmParams& p = params.gemm;
    const int block = blockIdx.x;
    const int row_tiles = load_past_l1(p.num_tiles);
    if (block >= row_tiles * kColumnTiles) return false;
    const auto [tile, column_tile] =
        find_tile(p, row_tiles, kColumnTiles, block, load_row_tile(p, kColumnTiles, block));
    expert = tile.expert;
    first = tile.first;
    num_rows = tile.num_rows;
    column0 = column_tile * kTileColumns;
    const int thread = threadIdx.x;
    for (int r = thread; r < C.block_m; r += kThreads) {
      int row = first + r;
      if constexpr (C.top_k > 0) {
        if (r < num_rows) row = p.sorted_slots[row] / C.top_k;
      }
      tile_rows[r] = r < num_rows ? row : -1;
    }
    __syncthreads();

    load_row = thread / kChunks;
    load_chunk = thread % kChunks;
#pragma unroll
    for (int i = 0; i < kALoads; ++i) {
      const int r = load_row + i * kLoadRows;
      const int row = r < C.block_m ? tile_rows[r] : -1;
      a_valid[i] = row >= 0;
      a_offset[i] = a_valid[i] ? static_cast<u32>(row) * (C.size_k / 16) : 0;
    }
    const i64 first_weight_row = static_cast<i64>(expert) * C.size_n;
    a_base = static_cast<const u8*>(p.a) + load_chunk * 16;
    w_base = static_cast<const u8*>(p.w) + (first_weight_row + weight_row(load_row)) * C.size_k +
             load_chunk * 16;
#pragma unroll
    for (int i = 0; i < kScaleLoads; ++i) {
      const int r = (thread + i * kThreads) / kWords;
      scale_source[i] = params.w_scale;
      scale_valid[i] = false;
      if (r < C.block_m) {
        scale_valid[i] = tile_rows[r] >= 0;
        if (scale_valid[i]) {
          scale_source[i] = params.a_scale + static_cast<i64>(tile_rows[r]) * kScalePitch;
        }
      } else if (r < kTileRows) {
        scale_valid[i] = column_valid(r - C.block_m);
        if (scale_valid[i]) {
          scale_source[i] += (first_weight_row + weight_row(r - C.block_m)) * kScalePitch;
        }
      }
    }
    return true;
  }

  // Fused: groups of 8 tile rows alternate between gate and up rows of the same columns, so that
  // a thread holds both halves of an output element.
  __device__ __forceinline__ int weight_row(int r) const {
    if constexpr (kFused) return (r / 8 % 2) * kOutColumns + column0 + r / 16 * 8 + r % 8;
    return column0 + r;
  }
  __device__ __forceinline__ bool column_valid(int r) const {
    if constexpr (kOutColumns % kTileColumns == 0) return true;
    return (kFused ? column0 + r / 16 * 8 + r % 8 : column0 + r) < kOutColumns;
  }

  // Starts the copies of a K step into the stage at this shared address.
  __device__ __forceinline__ void load(int step, u32 stage) const {
    const u32 b_stage = stage + C.block_m * C.block_k;
    const u32 scales = stage + kTileRows * C.block_k;
    const u32 store = load_row * C.block_k + swizzle(load_row, load_chunk) * 16;
    const int k = step * C.block_k;
    const bool valid_k = C.size_k % C.block_k == 0 || k + load_chunk * 16 < C.size_k;
    // kLoadRows is a multiple of 8, so the swizzle of load_row + i * kLoadRows is that of load_row.
#pragma unroll
    for (int i = 0; i < kALoads; ++i) {
      if (C.block_m % kLoadRows != 0 && load_row + i * kLoadRows >= C.block_m) continue;
      const bool valid = a_valid[i] && valid_k;
      cp_async_16(stage + store + i * kLoadRows * C.block_k,
                  a_base + (valid ? static_cast<i64>(a_offset[i]) * 16 + k : 0), valid);
    }
#pragma unroll
    for (int i = 0; i < kBLoads; ++i) {
      const int r = load_row + i * kLoadRows;
      const bool valid = valid_k && column_valid(r);
      const i64 rows = weight_row(r) - weight_row(load_row);
      cp_async_16(b_stage + store + i * kLoadRows * C.block_k,
                  w_base + (valid ? rows * C.size_k + k : 0), valid);
    }
#pragma unroll
    for (int i = 0; i < kScaleLoads; ++i) {
      const int item = threadIdx.x + i * kThreads;
      if (kScaleItems % kThreads != 0 && item >= kScaleItems) break;
      const int word = step * kWords + item % kWords;
      const bool valid = scale_valid[i] && (kWords == 1 || word < kScalePitch / 4);
      cp_async_4(scales + mx_scale_place(C, item) * 4, scale_source[i] + (valid ? word * 4 : 0),
                 valid);
    }
  }
};

}  // namespace moetune_journey
