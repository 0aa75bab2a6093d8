// Grouped GEMM for Hopper: out[p, n] = sum_k a[row(p), k] w[e, n, k] for the positions p of each
// expert e's slots (common/params.hpp). GEMM1 may gather row(p) = slot / top_k; otherwise, and in
// GEMM2, rows lie packed: row(p) = p.
//
// A tile's life. The grid is persistent: its blocks take tiles from a common list. In a block one
// warpgroup loads and the others multiply; a ring of num_stages stages of 128 bytes of K lies
// between them, each with a barrier that says "full" and one that says "empty".
//   Load: the copy engine (TMA) fetches the weight rows, for fused SwiGLU as two boxes, gate and
//   up, and packed activation rows with their block scales; in a cluster one block does for both.
//   Gathered rows come by cp.async, all 128 threads taking part: where an expert has many, packing
//   them first is faster (results/NVIDIA_H200/notes.md). A packed box that crosses its
//   expert's end reads the next expert's rows: harmless. Multiply: a warpgroup owns 64 rows. WGMMA
//   reads both operands from shared memory and adds up in registers. With block scales 128 of K go
//   to a temporary which is scaled into the accumulators, while the other warpgroups keep the
//   tensor cores busy. 64 rows without a slot are not multiplied. Store: a warp takes its 16 rows
//   through its own piece of shared memory, so that they leave as whole rows of 16-byte stores;
//   rows beyond the expert's end are left out. No padding is written.
//
// Background: DeepGEMM and CUTLASS describe this division of labour; two-level accumulation is
// DeepSeek-V3's (arXiv 2412.19437, section 3.3.2).
#include "common/params.hpp"
#include "common/sm90.cuh"
#include "common/walk.cuh"
#include "hopper/config.hpp"

namespace moetune {

// The tiles that a block takes: the first by its number, further ones by tickets, so that tiles
// begin in the order of the walk, however long each takes, and those that share weights or rows
// find them in L2. A cluster of two walks as one.
template <HopperConfig C>
struct Walk {
  static constexpr int kColumnTiles = (out_columns(C) + tile_columns(C) - 1) / tile_columns(C);
  const GemmParams& p;
  int row_tiles;
  RowTile at_first;

  // Reads what a block's first tile needs in one go.
  __device__ __forceinline__ explicit Walk(const GemmParams& params)
      : p(params), row_tiles(0), at_first(load_row_tile(p, kColumnTiles, first())) {
    row_tiles = load_past_l1(p.num_tiles);
  }
  __device__ __forceinline__ int first() const { return blockIdx.x / C.cluster; }
  __device__ __forceinline__ int blocks() const { return gridDim.x / C.cluster; }
  __device__ __forceinline__ int size() const { return row_tiles * kColumnTiles; }
  __device__ __forceinline__ Tile find(int index) const {
    const RowTile at = index == first() ? at_first : load_row_tile(p, kColumnTiles, index);
    return find_tile(p, row_tiles, kColumnTiles, index, at);
  }
  __device__ __forceinline__ int take_ticket() const {
    return blocks() + add_relaxed(p.tickets, 1);
  }
  // This block has its last ticket; the last block of all sets the counters back.
  __device__ __forceinline__ void leave() const {
    if (add_relaxed(p.tickets + 1, 1) != blocks() - 1) return;
    p.tickets[0] = 0;
    p.tickets[1] = 0;
  }
};

// Addresses in shared memory.
template <HopperConfig C>
struct Shared {
  u32 base;
  __device__ __forceinline__ u32 a(int stage) const { return base + stage * operand_bytes(C); }
  __device__ __forceinline__ u32 b(int stage) const { return a(stage) + C.block_m * kRowBytes; }
  __device__ __forceinline__ u32 scales(int stage) const {
    return base + C.num_stages * operand_bytes(C) + stage * scale_bytes(C);
  }
  __device__ __forceinline__ u32 staging(int warp) const {
    return scales(C.num_stages) + warp * staging_bytes(C);
  }
  __device__ __forceinline__ u32 full(int stage) const {
    return staging(C.num_warps) + stage * kStageControlBytes;
  }
  __device__ __forceinline__ u32 empty(int stage) const { return full(stage) + 8; }
  // The tile that begins in this stage: expert, first row, rows (-1: there are no more), column
  // tile.
  __device__ __forceinline__ u32 tile(int stage) const { return full(stage) + 16; }
  __device__ __forceinline__ u32 next_index(int parity) const {
    return full(C.num_stages) + parity * 4;
  }
  __device__ __forceinline__ u32 finished() const { return full(C.num_stages) + 8; }
  // Ping-pong: it is this warpgroup's turn.
  __device__ __forceinline__ u32 turn(int warpgroup) const {
    return full(C.num_stages) + 16 + warpgroup * 8;
  }
};

constexpr int kLoadBarrier = 1;  // a named one
template <HopperConfig C>
constexpr int kSteps = (C.size_k + step_k(C) - 1) / step_k(C);

// Blocks that have rows of a tile, as a mask; in a cluster the first one loads for both.
template <HopperConfig C>
__device__ __forceinline__ u32 blocks_with_rows(const RowTile& tile) {
  return C.cluster > 1 && tile.num_rows > C.block_m ? 3 : 1;
}

// Announces a stage's copies to its barrier and starts those of the weights.
template <HopperConfig C>
__device__ __forceinline__ void load_weights(const TensorMap& w_map, const Shared<C>& shared,
                                             int stage, int step, const Tile& tile) {
  constexpr int kBoxRows = weight_box_rows(C);
  constexpr int kBoxPitch = is_fused(C) ? out_columns(C) : kBoxRows;  // weight rows between boxes
  constexpr u32 kRowsBytes = C.block_m * kRowBytes + scale_bytes(C);
  constexpr u32 kBytes = C.block_n * kRowBytes + (C.top_k > 0 ? 0 : kRowsBytes);
  const u32 full = shared.full(stage);
  const int k = step * step_k(C);
  const int row = tile.rows.expert * C.size_n + tile.column_tile * tile_columns(C);
  const u32 blocks = blocks_with_rows<C>(tile.rows);
  if (step == 0) {
    const int in_first = min(tile.rows.num_rows, C.block_m);
    store_shared_16(shared.tile(stage), tile.rows.expert, tile.rows.first, in_first,
                    tile.column_tile);
    if constexpr (C.cluster > 1) {
      remote_store_16(in_block(shared.tile(stage), 1), tile.rows.expert,
                      tile.rows.first + C.block_m, tile.rows.num_rows - in_first, tile.column_tile,
                      in_block(full, 1));
    }
  }
  barrier_expect_bytes(full, kBytes);
  if constexpr (C.cluster > 1) {
    remote_expect_bytes(in_block(full, 1), (blocks == 3 ? kBytes : 0) + (step == 0 ? 16 : 0));
  }
#pragma unroll
  for (int box = 0; box < C.block_n / kBoxRows; ++box) {
    const u32 to = shared.b(stage) + box * kBoxRows * kRowBytes;
    if constexpr (C.cluster > 1) {
      tma_load_to(blocks, to, w_map, k, row + box * kBoxPitch, full);
    } else {
      tma_load(to, w_map, k, row + box * kBoxPitch, full);
    }
  }
}

// Starts a stage's copies of packed rows and their scales.
template <HopperConfig C>
__device__ __forceinline__ void load_rows(const GemmParams& p, const TensorMap& a_map,
                                          const Shared<C>& shared, int stage, int step,
                                          const RowTile& tile) {
  const u32 full = shared.full(stage);
  const int k = step * step_k(C);
  tma_load(shared.a(stage), a_map, k, tile.first, full);
  const int below = tile.first + C.block_m;
  const bool has_below = blocks_with_rows<C>(tile) == 3;
  if (has_below) tma_load_to(2, shared.a(stage), a_map, k, below, full);
  if constexpr (C.scales == Scales::block) {
    const float* const scales = p.a_scale + static_cast<i64>(step) * p.scale_pitch;
    bulk_load(shared.scales(stage), scales + tile.first / 4 * 4, scale_bytes(C), full);
    if (has_below) {
      bulk_load_to(2, shared.scales(stage), scales + below / 4 * 4, scale_bytes(C), full);
    }
  }
}

template <HopperConfig C>
__device__ __forceinline__ void load_tiles(const GemmParams& p, const TensorMap& w_map,
                                           const TensorMap& a_map, const Shared<C>& shared) {
  constexpr bool kGather = C.top_k > 0;
  constexpr bool kBlockScales = C.scales == Scales::block;
  constexpr int kElement = C.fp8 ? 1 : 2;
  constexpr int kScaleColumns = C.size_k / kScaleGroup;
  constexpr i64 kRowPitch = static_cast<i64>(C.size_k) * kElement;
  // cp.async: a thread loads one 16-byte chunk of every 16th row.
  constexpr int kRowStep = kWarpgroup / 8;
  constexpr int kLoads = C.block_m / kRowStep;
  constexpr int kScaleLoads = (C.block_m + kWarpgroup - 1) / kWarpgroup;

  const int thread = threadIdx.x;
  if (!kGather && thread > 0) return;
  if (C.cluster > 1 && cluster_rank() > 0) {  // the first block loads for both
    wait_for_previous_kernel();
    let_next_kernel_start();
    return;
  }
  const int chunk = thread % 8;
  const int first_row = thread / 8;
  const u32 chunk_at = first_row * kRowBytes + (chunk ^ (first_row & 7)) * 16;

  // GEMM2's tile list and weights are there before the kernel that writes its rows has ended, for
  // that kernel itself waited for the sort before it let this one start.
  if constexpr (kGather) wait_for_previous_kernel();
  const Walk<C> walk(p);
  Tile next{};
  int index = walk.first();
  int ahead = 0;  // stages whose weights are on their way
  if (index < walk.size()) {
    next = walk.find(index);
    ahead = kSteps<C> < C.num_stages ? kSteps<C> : C.num_stages;
    if (thread == 0) {
      for (int i = 0; i < ahead; ++i) load_weights<C>(w_map, shared, i, i, next);
    }
  }
  if constexpr (!kGather) wait_for_previous_kernel();
  if (thread == 0) let_next_kernel_start();

  // Late, so that tickets go out in the order in which tiles begin, but with time to read the list.
  constexpr int kLast = kSteps<C> - 1;
  constexpr int kTicketStep = kLast > 5 ? kLast - 5 : 0;
  constexpr int kFindStep = kLast > 2 ? kLast - 2 : kLast;
  Ring<C.num_stages> ring;
  int ticket = 0;
  for (int parity = 0; index < walk.size(); parity ^= 1) {
    const Tile current = next;
    const RowTile tile = current.rows;
    u32 row_offset[kGather ? kLoads : 1];  // in 16-byte units: 32 bits reach 64 GiB
    if constexpr (kGather) {
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const int r = first_row + i * kRowStep;
        const int slot = r < tile.num_rows ? __ldg(p.sorted_slots + tile.first + r) : 0;
        row_offset[i] = static_cast<u32>(slot / C.top_k * (kRowPitch / 16));
      }
    }
    const float* a_scale[kGather && kBlockScales ? kScaleLoads : 1];
    if constexpr (kGather && kBlockScales) {
#pragma unroll
      for (int i = 0; i < kScaleLoads; ++i) {
        const int r = thread + i * kWarpgroup;
        a_scale[i] = nullptr;
        if (r < tile.num_rows) {
          const int row = __ldg(p.sorted_slots + tile.first + r) / C.top_k;
          a_scale[i] = p.a_scale + static_cast<i64>(row) * kScaleColumns;
        }
      }
    }
    for (int step = 0; step < kSteps<C>; ++step) {
      const int stage = ring.stage;
      const u32 full = shared.full(stage);
      if (ahead > 0) {
        --ahead;
      } else {
        barrier_wait(shared.empty(stage), ring.parity ^ 1);
        if (thread == 0) load_weights<C>(w_map, shared, stage, step, current);
      }
      if (thread == 0 && step == kTicketStep) ticket = walk.take_ticket();
      if constexpr (!kGather) {
        load_rows<C>(p, a_map, shared, stage, step, tile);
      } else {
        const int k = step * step_k(C);
        const bool in_k = C.size_k % step_k(C) == 0 || k + chunk * (16 / kElement) < C.size_k;
        const u8* const source =
            static_cast<const u8*>(p.a) + (in_k ? k * kElement + chunk * 16 : 0);
#pragma unroll
        for (int i = 0; i < kLoads; ++i) {
          if (first_row + i * kRowStep >= tile.num_rows) continue;
          cp_async_16(shared.a(stage) + chunk_at + i * kRowStep * kRowBytes,
                      source + static_cast<i64>(row_offset[i]) * 16, in_k);
        }
        if constexpr (kBlockScales) {
#pragma unroll
          for (int i = 0; i < kScaleLoads; ++i) {
            if (a_scale[i] == nullptr) continue;
            cp_async_4(shared.scales(stage) + (thread + i * kWarpgroup) * 4, a_scale[i] + step,
                       true);
          }
        }
        barrier_arrive_after_cp_async(full);
      }
      ring.advance();
      if (step == kFindStep) {
        if constexpr (kGather) {
          if (thread == 0) store_shared(shared.next_index(parity), static_cast<u32>(ticket));
          warpgroup_sync(kLoadBarrier);
          index = static_cast<int>(load_shared_u32(shared.next_index(parity)));
        } else {
          index = ticket;
        }
        if (index < walk.size()) next = walk.find(index);
      }
    }
  }
  barrier_wait(shared.empty(ring.stage), ring.parity ^ 1);
  if (thread == 0) {
    const u32 full = shared.full(ring.stage);
    store_shared_16(shared.tile(ring.stage), 0, 0, -1, 0);
    barrier_arrive(full);
    if constexpr (C.cluster > 1) {
      remote_store_16(in_block(shared.tile(ring.stage), 1), 0, 0, -1, 0, in_block(full, 1));
      remote_expect_bytes(in_block(full, 1), 16);
    }
    walk.leave();
  }
  if constexpr (kGather) barrier_arrive(shared.full(ring.stage));
}

// The largest of the four threads that hold a row.
__device__ __forceinline__ float row_max(float value) {
  value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 1));
  return fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 2));
}

// What a thread of a multiplying warpgroup holds of 64 rows.
template <HopperConfig C>
struct Sums {
  static constexpr int kChunks = num_chunks(C);
  static constexpr int kChunkColumns = warpgroup_columns(C) / kChunks;
  static constexpr int kCount = warpgroup_columns(C) / 2;
  float of[kChunks][kChunkColumns / 2];
  // Columns of a warpgroup counted through: gate, then up when fused.
  __device__ __forceinline__ float& at(int i) {
    return of[i / (kChunkColumns / 2)][i % (kChunkColumns / 2)];
  }
};

// A warpgroup's part of a tile.
template <HopperConfig C>
struct Part {
  int row0;    // of the tile
  int chunk0;  // its first weight row in the tile
  int column;  // its first output column in the tile
  __device__ __forceinline__ explicit Part(int warpgroup) {
    const int along_n = C.ping_pong ? 0 : warpgroup % warpgroups_n(C);
    row0 = C.ping_pong ? 0 : warpgroup / warpgroups_n(C) * kWarpgroupRows;
    // Fused chunks are a half of the tile apart, others follow each other.
    chunk0 = along_n *
             (is_fused(C) && num_chunks(C) == 2 ? Sums<C>::kChunkColumns : warpgroup_columns(C));
    column = along_n * (tile_columns(C) / warpgroups_n(C));
  }
};

// Block scales of the weights that a warpgroup multiplies: a step's are used while the next step's
// are on their way.
template <HopperConfig C>
struct WeightScales {
  static constexpr int kColumns = C.size_k / kScaleGroup;
  const float* source[num_chunks(C)];
  float next[num_chunks(C)];
  __device__ __forceinline__ WeightScales(const GemmParams& p, const Part<C>& part, int expert,
                                          int column0) {
    const float* const scales =
        p.w_scale + static_cast<i64>(expert) * (C.size_n / kScaleGroup) * kColumns;
#pragma unroll
    for (int c = 0; c < num_chunks(C); ++c) {
      const int row = is_fused(C) ? c * out_columns(C) + column0 + part.column
                                  : column0 + part.column + c * Sums<C>::kChunkColumns;
      source[c] = scales + min(row, C.size_n - 1) / kScaleGroup * kColumns;
      next[c] = __ldg(source[c]);
    }
  }
  __device__ __forceinline__ void take(float (&scales)[num_chunks(C)], int step) {
#pragma unroll
    for (int c = 0; c < num_chunks(C); ++c) {
      scales[c] = next[c];
      next[c] = __ldg(source[c] + min(step + 1, kColumns - 1));
    }
  }
};

// One stage of the first kWaves times 64 rows, plainly: starts it and lets it run. `first`: the
// sums start here.
template <HopperConfig C, int kWaves>
__device__ __forceinline__ void multiply(Sums<C> (&sums)[num_waves(C)], const Shared<C>& shared,
                                         int stage, const Part<C>& part, bool first) {
  using Chunk = Wgmma<Sums<C>::kChunkColumns>;
  constexpr int kChunks = num_chunks(C);
  constexpr u64 kChunkStep =
      (is_fused(C) ? C.block_n / 2 : Sums<C>::kChunkColumns) * kRowBytes / 16;
  constexpr u64 kWaveStep = kWarpgroupRows * kRowBytes / 16;
  const u64 a = matrix_descriptor(shared.a(stage) + part.row0 * kRowBytes);
  const u64 b = matrix_descriptor(shared.b(stage) + part.chunk0 * kRowBytes);
  wgmma_begin();
#pragma unroll
  for (int k = 0; k < 4; ++k) {
#pragma unroll
    for (int wave = 0; wave < kWaves; ++wave) {
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        const int accumulate = k > 0 || !first;
        const u64 a_at = a + wave * kWaveStep + k * 2;
        const u64 b_at = b + c * kChunkStep + k * 2;
        if constexpr (C.fp8) {
          Chunk::e4m3(sums[wave].of[c], a_at, b_at, accumulate);
        } else {
          Chunk::bf16(sums[wave].of[c], a_at, b_at, accumulate);
        }
      }
    }
  }
  wgmma_commit();
}

// The same with block scales: 128 of K into a temporary, which is then scaled into the sums, while
// the other warpgroups keep the tensor cores busy. (Two temporaries of half the width in turns,
// which fit the registers too, were slower: narrow WGMMA read the rows too often.) `scale_row`:
// where this thread's first row in 64 has its scale among those of the stage. `release` is called
// when the stage has been read.
template <HopperConfig C, int kWaves, typename Release>
__device__ __forceinline__ void multiply_scaled(Sums<C> (&sums)[num_waves(C)],
                                                const Shared<C>& shared, int stage,
                                                const Part<C>& part, int scale_row,
                                                const float (&weight_scales)[num_chunks(C)],
                                                Release&& release) {
  constexpr int kChunks = num_chunks(C);
  constexpr int kChunkColumns = Sums<C>::kChunkColumns;
  constexpr u64 kChunkStep = (is_fused(C) ? C.block_n / 2 : kChunkColumns) * kRowBytes / 16;
  constexpr u64 kWaveStep = kWarpgroupRows * kRowBytes / 16;
  const u64 a = matrix_descriptor(shared.a(stage) + part.row0 * kRowBytes);
  const u64 b = matrix_descriptor(shared.b(stage) + part.chunk0 * kRowBytes);
#pragma unroll
  for (int wave = 0; wave < kWaves; ++wave) {
    const u32 row_scales = shared.scales(stage) + (scale_row + wave * kWarpgroupRows) * 4;
    const float low_row = load_shared(row_scales);
    const float high_row = load_shared(row_scales + 32);
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      float product[kChunkColumns / 2];
      wgmma_begin();
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        Wgmma<kChunkColumns>::e4m3(product, a + wave * kWaveStep + k * 2,
                                   b + c * kChunkStep + k * 2, k > 0);
      }
      wgmma_commit();
      wgmma_wait<0>();
      if (wave == kWaves - 1 && c == kChunks - 1) release();
      wgmma_results(product);
      const float low = low_row * weight_scales[c];
      const float high = high_row * weight_scales[c];
#pragma unroll
      for (int i = 0; i < kChunkColumns / 2; ++i) {
        sums[wave].of[c][i] += (i % 4 < 2 ? low : high) * product[i];
      }
    }
  }
}

// Takes the warp's 16 staged rows of `kBytes` to global memory: row r from `target` + r * pitch.
template <int kBytes>
__device__ __forceinline__ void store_rows(u32 staging, u8* target, i64 pitch, int num_rows,
                                           int valid_bytes) {
  constexpr int kRowChunks = kBytes / 16;
  constexpr int kRowsAtOnce = 32 / kRowChunks;
  const int lane = threadIdx.x % 32;
  const int chunk = lane % kRowChunks;
#pragma unroll
  for (int i = 0; i < 16 / kRowsAtOnce; ++i) {
    const int r = i * kRowsAtOnce + lane / kRowChunks;
    if (r < num_rows && chunk * 16 < valid_bytes) {
      *reinterpret_cast<uint4*>(target + r * pitch + chunk * 16) =
          load_shared_16(staging + r * kBytes + (chunk ^ (r & 7)) * 16);
    }
  }
}

// Stores 64 rows of a tile, from its row `row0` on.
template <HopperConfig C>
__device__ __forceinline__ void store_rows_of_tile(Sums<C>& sums, const GemmParams& p, u32 staging,
                                                   const RowTile& tile, int row0, int column,
                                                   const float (&scale)[2]) {
  constexpr int kColumns = tile_columns(C) / warpgroups_n(C);
  constexpr int kHalf = Sums<C>::kCount / 2;  // where the up columns begin
  const int lane = threadIdx.x % 32;
  row0 += threadIdx.x / 32 % 4 * 16;
  const int num_rows = tile.num_rows - row0;
  if (num_rows <= 0) return;
  const i64 position = tile.first + row0;
  const int r = lane / 4;
  if constexpr (C.scales == Scales::tensor) {
#pragma unroll
    for (int i = 0; i < Sums<C>::kCount; ++i) sums.at(i) *= scale[i / 2 % 2];
  }
  if constexpr (is_fused(C)) {
#pragma unroll
    for (int i = 0; i < kHalf; ++i) sums.at(i) = silu(sums.at(i)) * sums.at(kHalf + i);
  }

  if constexpr (C.output == Output::swiglu_fp8) {
    static_assert(kColumns == kScaleGroup, "a warpgroup quantises one scale group a row");
    float largest[2] = {};
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      largest[i / 2 % 2] = fmaxf(largest[i / 2 % 2], fabsf(sums.at(i)));
    }
    float inverse[2];
    __syncwarp();
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float amax = row_max(largest[h]);
      const float row_scale = amax > 0.0f ? amax / 448.0f : 1.0f;
      inverse[h] = 1.0f / row_scale;
      if (lane % 4 == 0 && r + h * 8 < num_rows) {
        p.out_scale[static_cast<i64>(column / kScaleGroup) * p.scale_pitch + position + r + h * 8] =
            row_scale;
      }
    }
#pragma unroll
    for (int j = 0; j < kColumns / 8; ++j) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int i = j * 4 + h * 2;
        store_shared(
            staging + (r + h * 8) * kColumns + ((j / 2) ^ r) * 16 + j % 2 * 8 + lane % 4 * 2,
            pack_e4m3(sums.at(i) * inverse[h], sums.at(i + 1) * inverse[h]));
      }
    }
    __syncwarp();
    store_rows<kColumns>(staging, static_cast<u8*>(p.out) + position * out_columns(C) + column,
                         out_columns(C), num_rows, kColumns);
  } else {
    constexpr int kStaged = kColumns < kStagedColumns ? kColumns : kStagedColumns;
    constexpr int kBytes = kStaged * 2;
#pragma unroll
    for (int pass = 0; pass < (kColumns + kStaged - 1) / kStaged; ++pass) {
      __syncwarp();  // the pass or the tile before has left
#pragma unroll
      for (int j = 0; j < kStaged / 8; ++j) {
        if (pass * kStaged + j * 8 >= kColumns) break;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int i = (pass * kStaged / 8 + j) * 4 + h * 2;
          store_shared(staging + (r + h * 8) * kBytes + (j ^ r) * 16 + lane % 4 * 4,
                       pack_bf16(sums.at(i), sums.at(i + 1)));
        }
      }
      __syncwarp();
      const int at = column + pass * kStaged;
      const int valid = min(out_columns(C) - at, kColumns - pass * kStaged) * 2;
      store_rows<kBytes>(staging, static_cast<u8*>(p.out) + (position * out_columns(C) + at) * 2,
                         static_cast<i64>(out_columns(C)) * 2, num_rows, valid);
    }
  }
}

template <HopperConfig C>
__device__ __forceinline__ void multiply_tiles(const GemmParams& p, const Shared<C>& shared) {
  constexpr int kWaves = num_waves(C);
  const int warpgroup = threadIdx.x / kWarpgroup - 1;
  const int lane = threadIdx.x % 32;
  const int lane_row = threadIdx.x / 32 % 4 * 16 + lane / 4;
  const u32 staging = shared.staging(threadIdx.x / 32 - 4);
  const Part<C> part(warpgroup);

  wait_for_previous_kernel();
  const auto pass_turn = [&] {
    __syncwarp();
    if (lane == 0) barrier_arrive(shared.turn((warpgroup + 1) % math_warpgroups(C)));
  };
  Ring<C.num_stages> ring;
  u32 turn_parity = warpgroup == 0 ? 1 : 0;  // the first turn is the first one's
  if constexpr (C.ping_pong) {
    for (int i = 0; i < warpgroup; ++i) ring.template advance<kSteps<C>>();
  }
  for (;;) {
    // Ping-pong: a barrier tells a phase from the next but not from the one after, so a warpgroup
    // may only wait for its stages once those of the tile before have been full.
    if constexpr (C.ping_pong) {
      barrier_wait(shared.turn(warpgroup), turn_parity);
      turn_parity ^= 1;
      if (load_shared_u32(shared.finished()) != 0) {
        pass_turn();
        break;
      }
    }
    barrier_wait(shared.full(ring.stage), ring.parity);
    const uint4 posted = load_shared_16(shared.tile(ring.stage));
    const RowTile tile{static_cast<int>(posted.x), static_cast<int>(posted.y),
                       static_cast<int>(posted.z), 0};
    if (tile.num_rows < 0) {
      if constexpr (C.ping_pong) {
        if (lane == 0) store_shared(shared.finished(), 1u);
        pass_turn();
      }
      break;
    }
    const int column0 = static_cast<int>(posted.w) * tile_columns(C);
    const auto release = [&](int stage) {
      __syncwarp();  // all lanes have read it
      if (lane != 0) return;
      if constexpr (C.cluster > 1) {
        if (cluster_rank() > 0) return remote_arrive(in_block(shared.empty(stage), 0));
      }
      barrier_arrive(shared.empty(stage));
    };
    const auto run = [&]<typename Step>(Step&& step) {
#pragma unroll 1
      for (int i = 0; i < kSteps<C>; ++i) {
        barrier_wait(shared.full(ring.stage), ring.parity);
        if constexpr (C.ping_pong) {
          if (i == kSteps<C> - 1) pass_turn();
        }
        step(i);
        ring.advance();
      }
      if constexpr (C.ping_pong) {
        ring.template advance<kSteps<C>*(math_warpgroups(C) - 1)>();
      }
    };
    if (part.row0 >= tile.num_rows) {  // nothing here for these warps
      run([&](int) { release(ring.stage); });
      continue;
    }
    float scale[kWaves][2];
#pragma unroll
    for (int i = 0; i < kWaves * 2; ++i) {
      scale[i / 2][i % 2] = 1.0f;
      if constexpr (C.scales == Scales::tensor) {
        const int r = part.row0 + i / 2 * kWarpgroupRows + lane_row + i % 2 * 8;
        int row = tile.first + min(r, tile.num_rows - 1);
        if constexpr (C.top_k > 0) row = p.sorted_slots[row] / C.top_k;
        scale[i / 2][i % 2] = p.w_scale[tile.expert] * p.a_scale[row];
      }
    }
    Sums<C> sums[kWaves];
    if constexpr (C.scales == Scales::block) {
#pragma unroll
      for (int i = 0; i < kWaves * Sums<C>::kCount; ++i) {
        sums[i / Sums<C>::kCount].at(i % Sums<C>::kCount) = 0.0f;
      }
    }
    // cp.async's writes are complete when the barrier says so; as in CUTLASS's cp.async main loops
    // no proxy fence follows (it would be a MEMBAR a stage).
    const auto run_waves = [&]<int kCount>() {
      if constexpr (C.scales == Scales::block) {
        const int scale_row = part.row0 + lane_row + (C.top_k > 0 ? 0 : tile.first % 4);
        WeightScales<C> weight_scales(p, part, tile.expert, column0);
        run([&](int i) {
          float weights[num_chunks(C)];
          weight_scales.take(weights, i);
          multiply_scaled<C, kCount>(sums, shared, ring.stage, part, scale_row, weights,
                                     [&] { release(ring.stage); });
        });
      } else {
        // A step's multiplications run on while the next one's are started.
        int before = 0;
        run([&](int i) {
          multiply<C, kCount>(sums, shared, ring.stage, part, i == 0);
          if (i > 0) {
            wgmma_wait<1>();
            release(before);
          }
          before = ring.stage;
        });
        wgmma_wait<0>();
        release(before);
#pragma unroll
        for (int wave = 0; wave < kCount; ++wave) {
#pragma unroll
          for (int c = 0; c < num_chunks(C); ++c) wgmma_results(sums[wave].of[c]);
        }
      }
    };
    if constexpr (kWaves > 1) {
      if (tile.num_rows <= kWarpgroupRows) {
        run_waves.template operator()<1>();
        store_rows_of_tile<C>(sums[0], p, staging, tile, 0, column0 + part.column, scale[0]);
        continue;
      }
    }
    run_waves.template operator()<kWaves>();
#pragma unroll
    for (int wave = 0; wave < kWaves; ++wave) {
      store_rows_of_tile<C>(sums[wave], p, staging, tile, part.row0 + wave * kWarpgroupRows,
                            column0 + part.column, scale[wave]);
    }
  }
}

template <HopperConfig C>
__global__ void __launch_bounds__(num_threads(C), C.blocks_per_sm)
    moe_gemm_sm90(const GemmParams p, const __grid_constant__ TensorMap w_map,
                  const __grid_constant__ TensorMap a_map) {
  static_assert(C.block_m % kWarpgroupRows == 0 && math_warpgroups(C) % warpgroups_m(C) == 0 &&
                    warpgroups_n(C) >= 1,
                "the host's rules let this pass");
  extern __shared__ __align__(1024) u8 smem[];
  const Shared<C> shared{smem_address(smem)};
  if (threadIdx.x == 0) {
    if (shared.base % 1024 != 0) __trap();  // the swizzle counts on it
    store_shared(shared.finished(), 0u);
    if constexpr (C.ping_pong) {
      for (int i = 0; i < math_warpgroups(C); ++i) barrier_init(shared.turn(i), 4);
    }
    prefetch_tensor_map(w_map);
    if constexpr (C.top_k == 0) prefetch_tensor_map(a_map);
    for (int stage = 0; stage < C.num_stages; ++stage) {
      barrier_init(shared.full(stage), C.top_k > 0 ? kWarpgroup + 1 : 1);
      barrier_init(shared.empty(stage), readers(C));
    }
    fence_barrier_init();
  }
  __syncthreads();
  if constexpr (C.cluster > 1) cluster_wait();
  constexpr bool kMoves = math_registers(C) > launch_registers(C);
  if (threadIdx.x < kWarpgroup) {
    if constexpr (kMoves) give_up_registers<load_registers(C)>();
    load_tiles<C>(p, w_map, a_map, shared);
  } else {
    if constexpr (kMoves) take_registers<math_registers(C)>();
    multiply_tiles<C>(p, shared);
  }
  if constexpr (C.cluster > 1) {  // the other block may still write here
    __syncwarp();
    cluster_wait();
  }
}

}  // namespace moetune
