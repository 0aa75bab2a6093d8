// GEMM2's last step where it takes the weighted sum over, in place of a kernel behind it.
//
// The walk is column-major. When all row tiles of a column are stored, its part of every token is
// summed, by the warps of all blocks, each as soon as it has finished a tile of a later column:
// the rows are then still in L2, and waiting is rare. Warps tell by counters, one a column; the
// last warp to leave sets them back to 0 for the next launch. All blocks must be resident, or the
// waiting would not end: the grid is persistent, and clusters, which might not all fit, are left
// out by the host's rules.
#pragma once

#include "common/combine.cuh"
#include "common/sm90.cuh"
#include "hopper/config.hpp"

namespace moetune {

template <HopperConfig C>
struct Combine {
  static constexpr int kColumns = tile_columns(C);
  static constexpr int kColumnTiles = (C.size_n + kColumns - 1) / kColumns;
  static constexpr int kLanes = kColumns / 8;  // that sum a token's part
  static constexpr int kTokensAtOnce = 32 / kLanes;
  const GemmParams& p;
  int summed = 0;  // columns of tiles

  __device__ __forceinline__ explicit Combine(const GemmParams& params) : p(params) {}

  // This warp's rows of a tile in `column_tile` are stored.
  __device__ __forceinline__ void after_tile(int column_tile, int row_tiles) {
    if constexpr (C.combine > 0) {
      __syncwarp();
      if (threadIdx.x % 32 == 0) add_release(p.arrivals + column_tile, 1);
      while (summed < column_tile) sum_column(summed++, row_tiles);
    }
  }
  // This warp has no more tiles.
  __device__ __forceinline__ void after_all(int row_tiles) {
    if constexpr (C.combine > 0) {
      while (summed < kColumnTiles) sum_column(summed++, row_tiles);
      __syncwarp();
      if (threadIdx.x % 32 != 0) return;
      int* const left = p.arrivals + kColumnTiles;
      if (add_acquire_release(left, 1) != num_warps() - 1) return;
      for (int i = 0; i <= kColumnTiles; ++i) p.arrivals[i] = 0;
    }
  }

 private:
  __device__ __forceinline__ int num_warps() const { return gridDim.x * C.num_warps; }

  __device__ __forceinline__ void sum_column(int column_tile, int row_tiles) const {
    // (column, tokens) pairs go round the blocks first, then round a block's warps.
    const int lane = threadIdx.x % 32;
    const int warp = (threadIdx.x / 32 - 4) * gridDim.x + blockIdx.x;
    const int per_column = (p.combine.num_tokens + kTokensAtOnce - 1) / kTokensAtOnce;
    const int before = static_cast<int>(static_cast<i64>(column_tile) * per_column % num_warps());
    int i = warp - before;
    if (i < 0) i += num_warps();
    if (i >= per_column) return;
    while (load_acquire(p.arrivals + column_tile) != row_tiles * readers(C)) __nanosleep(20);
    const int column = column_tile * kColumns + lane % kLanes * 8;
    if (lane >= kTokensAtOnce * kLanes || column >= C.size_n) return;
    for (; i < per_column; i += num_warps()) {
      const int token = i * kTokensAtOnce + lane / kLanes;
      if (token < p.combine.num_tokens) combine_8<C.combine>(p.combine, token, column);
    }
  }
};

}  // namespace moetune
