// Grouped GEMM for Hopper: out[p, n] = sum_k a[row(p), k] w[e, n, k] for the positions p of each
// expert e's slots (common/params.hpp). GEMM1 may gather row(p) = slot / top_k; otherwise, and in
// GEMM2, rows lie packed: row(p) = p.
//
// A tile's life. The grid is persistent: its blocks take tiles from a common list. In a block one
// warpgroup loads and the others multiply; a ring of num_stages stages of 128 bytes of K lies
// between them, each with a barrier that says "full" and one that says "empty".
//   Load: the copy engine (TMA) fetches the weight rows, for fused SwiGLU as two boxes, gate and
//   up, and packed activation rows; in a cluster one block does for both. Gathered rows come by
//   cp.async, all 128 threads taking part (a TMA box a row is several times slower); in bf16,
//   where an expert has many, packing them first is faster (results/NVIDIA_H200/notes.md). A packed
//   box that crosses its expert's end reads the next expert's rows: harmless.
//   Multiply: a warpgroup owns 64 rows. WGMMA reads both operands from shared memory and adds up in
//   registers. With block scales 128 of K go to a temporary which is scaled into the accumulators,
//   while the other warpgroups keep the tensor cores busy. 64 rows without a slot are not
//   multiplied. Store: four lanes hold a row's eight columns; they exchange words, so that each
//   has 16 bytes to store or, where the weighted sum is fused, to add to the token's row. Rows
//   beyond the expert's end are left out. No padding is written.
//
// Background: DeepGEMM and CUTLASS describe this division of labour; two-level accumulation is
// DeepSeek-V3's (arXiv 2412.19437, section 3.3.2).
#include "common/params.hpp"
#include "common/sm90.cuh"
#include "common/tickets.cuh"
#include "hopper/config.hpp"

namespace moetune {

template <HopperConfig C>
using Walk = TicketWalk<(out_columns(C) + tile_columns(C) - 1) / tile_columns(C), C.cluster>;

// Addresses in shared memory.
template <HopperConfig C>
struct Shared {
  u32 base;
  __device__ __forceinline__ u32 a(int stage) const { return base + stage * operand_bytes(C); }
  __device__ __forceinline__ u32 b(int stage) const { return a(stage) + C.block_m * kRowBytes; }
  __device__ __forceinline__ u32 full(int stage) const {
    return base + C.num_stages * operand_bytes(C) + stage * kStageControlBytes;
  }
  __device__ __forceinline__ u32 empty(int stage) const { return full(stage) + 8; }
  // The tile that begins in this stage: expert, first row, rows (-1: there are no more), column
  // tile.
  __device__ __forceinline__ u32 tile(int stage) const { return full(stage) + 16; }
  __device__ __forceinline__ u32 next_index(int parity) const {
    return full(C.num_stages) + parity * 4;
  }
  // Ping-pong: it is this warpgroup's turn, and the last tile has been taken: told from each of its
  // warps to the same warp of the next.
  __device__ __forceinline__ u32 turn(int warpgroup) const {
    return full(C.num_stages) + 8 + warpgroup * 8;
  }
  __device__ __forceinline__ u32 finished(int warp) const {
    return full(C.num_stages) + 32 + warp % 4 * 4;
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
  constexpr u32 kBytes = (C.block_n + (C.gather ? 0 : C.block_m)) * kRowBytes;
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

// Starts a stage's copies of packed rows.
template <HopperConfig C>
__device__ __forceinline__ void load_rows(const TensorMap& a_map, const Shared<C>& shared,
                                          int stage, int step, const RowTile& tile) {
  const u32 full = shared.full(stage);
  const int k = step * step_k(C);
  tma_load(shared.a(stage), a_map, k, tile.first, full);
  if (blocks_with_rows<C>(tile) == 3) {
    tma_load_to(2, shared.a(stage), a_map, k, tile.first + C.block_m, full);
  }
}

template <HopperConfig C>
__device__ __forceinline__ void load_tiles(const GemmParams& p, const TensorMap& w_map,
                                           const TensorMap& a_map, const Shared<C>& shared) {
  constexpr bool kGather = C.gather == 1;
  constexpr int kElement = C.fp8 ? 1 : 2;
  constexpr i64 kRowPitch = static_cast<i64>(C.size_k) * kElement;
  // cp.async: a thread loads one 16-byte chunk of every 16th row.
  constexpr int kRowStep = kWarpgroup / 8;
  constexpr int kLoads = C.block_m / kRowStep;

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
  Tile next{};
  const Walk<C> walk(p, next);
  int index = walk.first();
  int ahead = 0;  // stages whose weights are on their way
  if (index < walk.size()) {
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
    for (int step = 0; step < kSteps<C>; ++step) {
      const int stage = ring.stage;
      const u32 full = shared.full(stage);
      if (ahead > 0) {
        --ahead;
      } else {
        barrier_wait(shared.empty(stage), ring.parity ^ 1);
        if (thread == 0) load_weights<C>(w_map, shared, stage, step, current);
      }
      if (thread == 0 && step == kTicketStep) index = walk.take_ticket();
      if constexpr (!kGather) {
        load_rows<C>(a_map, shared, stage, step, tile);
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
        barrier_arrive_after_cp_async(full);
      }
      ring.advance();
      if (step == kFindStep) {
        if constexpr (kGather) {
          if (thread == 0) store_shared(shared.next_index(parity), static_cast<u32>(index));
          warps_sync<kWarpgroup>(kLoadBarrier);
          index = static_cast<int>(load_shared_u32(shared.next_index(parity)));
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
  int at[num_chunks(C)];  // of step 0
  float next[num_chunks(C)];
  __device__ __forceinline__ WeightScales(const GemmParams& p, const Part<C>& part, int expert,
                                          int column0) {
#pragma unroll
    for (int c = 0; c < num_chunks(C); ++c) {
      const int row = is_fused(C) ? c * out_columns(C) + column0 + part.column
                                  : column0 + part.column + c * Sums<C>::kChunkColumns;
      at[c] = (expert * (C.size_n / kScaleGroup) + min(row, C.size_n - 1) / kScaleGroup) * kColumns;
      next[c] = __ldg(p.w_scale + at[c]);
    }
  }
  __device__ __forceinline__ void take(float (&scales)[num_chunks(C)], const GemmParams& p,
                                       int step) {
#pragma unroll
    for (int c = 0; c < num_chunks(C); ++c) {
      scales[c] = next[c];
      next[c] = __ldg(p.w_scale + at[c] + min(step + 1, kColumns - 1));
    }
  }
};

// Block scales of the rows that a thread multiplies, two in each 64, likewise. The four lanes that
// share rows hold one (of 128 rows) each.
template <HopperConfig C>
struct RowScales {
  static constexpr int kColumns = C.size_k / kScaleGroup;
  static constexpr int kHeld = (num_waves(C) + 1) / 2;
  int at[kHeld];  // of step 0
  float next[kHeld];
  __device__ __forceinline__ RowScales(const GemmParams& p, const RowTile& tile, int row0) {
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int lane4 = threadIdx.x % 4;
      const int r = row0 + (i * 2 + lane4 / 2) * kWarpgroupRows + lane4 % 2 * 8;
      // Beyond the expert's rows: anything that may be read.
      const int position = tile.first + min(r, tile.num_rows - 1);
      at[i] = C.gather ? __ldg(p.sorted_slots + position) / C.top_k * kColumns : position;
      next[i] = p.a_scale[at[i]];
    }
  }
  __device__ __forceinline__ void take(float (&scales)[num_waves(C)][2], const GemmParams& p,
                                       int step) {
#pragma unroll
    for (int i = 0; i < num_waves(C) * 2; ++i) {
      scales[i / 2][i % 2] =
          __shfl_sync(0xffffffffu, next[i / 4], (threadIdx.x & 28) | static_cast<u32>(i % 4));
    }
    const int ahead = min(step + 1, kColumns - 1);
    const i64 to_next = C.gather ? ahead : static_cast<i64>(ahead) * p.scale_pitch;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) next[i] = p.a_scale[at[i] + to_next];
  }
};

// Where the rows that a thread holds go, and what they are multiplied by before.
template <HopperConfig C>
struct Rows {
  static constexpr bool kScales = C.scales == Scales::tensor || C.output == Output::weighted_sum;
  int target[num_waves(C)][2];  // row of the output; -1: none
  float factor[num_waves(C)][2];

  __device__ __forceinline__ Rows(const GemmParams& p, const RowTile& tile, int row0) {
#pragma unroll
    for (int i = 0; i < num_waves(C) * 2; ++i) {
      const int r = row0 + i / 2 * kWarpgroupRows + i % 2 * 8;
      const int position = tile.first + min(r, tile.num_rows - 1);
      const int slot = kScales ? __ldg(p.sorted_slots + position) : 0;
      float f = 1.0f;
      if constexpr (C.scales == Scales::tensor) {
        f = __ldg(p.w_scale + tile.expert) * p.a_scale[C.gather ? slot / C.top_k : position];
      }
      if constexpr (C.output == Output::weighted_sum) f *= __ldg(p.topk_weights + slot);
      const int row = C.output == Output::weighted_sum ? slot / C.top_k : position;
      target[i / 2][i % 2] = r < tile.num_rows ? row : -1;
      factor[i / 2][i % 2] = f;
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
// which fit the registers too, were slower: narrow WGMMA read the rows too often.) `release` is
// called when the stage has been read.
template <HopperConfig C, int kWaves, typename Release>
__device__ __forceinline__ void multiply_scaled(Sums<C> (&sums)[num_waves(C)],
                                                const Shared<C>& shared, int stage,
                                                const Part<C>& part,
                                                const float (&row_scales)[num_waves(C)][2],
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
      const float low = row_scales[wave][0] * weight_scales[c];
      const float high = row_scales[wave][1] * weight_scales[c];
#pragma unroll
      for (int i = 0; i < kChunkColumns / 2; ++i) {
        sums[wave].of[c][i] += (i % 4 < 2 ? low : high) * product[i];
      }
    }
  }
}

// Lane l of four gets word l of each of them.
__device__ __forceinline__ void transpose_of_four(u32 (&words)[4]) {
  const bool odd = threadIdx.x % 2 > 0;
  const bool high = threadIdx.x % 4 > 1;
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const u32 other = __shfl_xor_sync(0xffffffffu, odd ? words[i] : words[i + 1], 1);
    (odd ? words[i] : words[i + 1]) = other;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const u32 other = __shfl_xor_sync(0xffffffffu, high ? words[i] : words[i + 2], 2);
    (high ? words[i] : words[i + 2]) = other;
  }
}

// Stores the 64 rows of a wave.
template <HopperConfig C>
__device__ __forceinline__ void store_wave(Sums<C>& sums, const GemmParams& p, const Rows<C>& rows,
                                           int wave, int column) {
  constexpr int kColumns = tile_columns(C) / warpgroups_n(C);
  constexpr int kHalf = Sums<C>::kCount / 2;  // where the up columns begin
  constexpr i64 kRowBytesOut = out_columns(C) * (C.output == Output::swiglu_fp8 ? 1 : 2);
  constexpr bool kEven = out_columns(C) % tile_columns(C) == 0;
  const int lane4 = threadIdx.x % 4;
  if constexpr (Rows<C>::kScales) {
#pragma unroll
    for (int i = 0; i < Sums<C>::kCount; ++i) sums.at(i) *= rows.factor[wave][i / 2 % 2];
  }
  if constexpr (is_fused(C)) {
#pragma unroll
    for (int i = 0; i < kHalf; ++i) sums.at(i) = silu(sums.at(i)) * sums.at(kHalf + i);
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = rows.target[wave][h];
    u8* const target = static_cast<u8*>(p.out) + row * kRowBytesOut;
    if constexpr (C.output == Output::swiglu_fp8) {
      static_assert(kColumns == kScaleGroup, "a warpgroup quantises one scale group a row");
      float largest = 0;
#pragma unroll
      for (int i = h * 2; i < kHalf; i += 4) {
        largest = fmaxf(largest, fmaxf(fabsf(sums.at(i)), fabsf(sums.at(i + 1))));
      }
      const float amax = row_max(largest);
      const float scale = amax > 0.0f ? amax / 448.0f : 1.0f;
      const float inverse = 1.0f / scale;
      if (lane4 == 0 && row >= 0) {
        p.out_scale[static_cast<i64>(column / kScaleGroup) * p.scale_pitch + row] = scale;
      }
#pragma unroll
      for (int j = 0; j < kColumns; j += 64) {  // columns of the tile
        u32 words[4];
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          const int i = (j + w * 16) / 2 + h * 2;
          words[w] = pack_e4m3(sums.at(i) * inverse, sums.at(i + 1) * inverse) |
                     pack_e4m3(sums.at(i + 4) * inverse, sums.at(i + 5) * inverse) << 16;
        }
        transpose_of_four(words);
        if (row >= 0) {  // low halves are columns 0 to 7 of 16, high ones 8 to 15
          *reinterpret_cast<uint4*>(target + column + j + lane4 * 16) = make_uint4(
              __byte_perm(words[0], words[1], 0x5410), __byte_perm(words[2], words[3], 0x5410),
              __byte_perm(words[0], words[1], 0x7632), __byte_perm(words[2], words[3], 0x7632));
        }
      }
    } else {
#pragma unroll
      for (int j = 0; j < kColumns; j += 32) {
        u32 words[4];
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          const int i = (j + w * 8) / 2 + h * 2;
          words[w] = pack_bf16(sums.at(i), sums.at(i + 1));
        }
        transpose_of_four(words);
        const int at = column + j + lane4 * 8;
        if (row < 0 || !(kEven || at < out_columns(C))) continue;
        const uint4 value = make_uint4(words[0], words[1], words[2], words[3]);
        if constexpr (C.output == Output::weighted_sum) {
          add_eight_bf16(target + at * 2, value);
        } else {
          *reinterpret_cast<uint4*>(target + at * 2) = value;
        }
      }
    }
  }
}

template <HopperConfig C>
__device__ __forceinline__ void multiply_tiles(const GemmParams& p, const Shared<C>& shared) {
  constexpr int kWaves = num_waves(C);
  const int warpgroup = threadIdx.x / kWarpgroup - 1;
  const int lane = threadIdx.x % 32;
  const int lane_row = threadIdx.x / 32 % 4 * 16 + lane / 4;
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
      if (load_for_warp(shared.finished(threadIdx.x / 32)) != 0) {
        pass_turn();
        break;
      }
    }
    barrier_wait(shared.full(ring.stage), ring.parity);
    const uint4 posted = load_16_for_warp(shared.tile(ring.stage));
    const RowTile tile{static_cast<int>(posted.x), static_cast<int>(posted.y),
                       static_cast<int>(posted.z), 0};
    if (tile.num_rows < 0) {
      if constexpr (C.ping_pong) {
        if (lane == 0) store_shared(shared.finished(threadIdx.x / 32), 1u);
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
    const int row0 = part.row0 + lane_row;
    const Rows<C> rows(p, tile, row0);
    Sums<C> sums[kWaves];
    if constexpr (C.scales == Scales::block) {
#pragma unroll
      for (int i = 0; i < kWaves * Sums<C>::kCount; ++i) {
        sums[i / Sums<C>::kCount].at(i % Sums<C>::kCount) = 0.0f;
      }
    }
    const auto run_waves = [&]<int kCount>() {
      if constexpr (C.scales == Scales::block) {
        WeightScales<C> weight_scales(p, part, tile.expert, column0);
        RowScales<C> row_scales(p, tile, row0);
        run([&](int i) {
          float weights[num_chunks(C)];
          weight_scales.take(weights, p, i);
          float row_scale[kWaves][2];
          row_scales.take(row_scale, p, i);
          multiply_scaled<C, kCount>(sums, shared, ring.stage, part, row_scale, weights,
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
    if (kWaves > 1 && tile.num_rows <= kWarpgroupRows) {
      run_waves.template operator()<1>();
    } else {
      run_waves.template operator()<kWaves>();
    }
#pragma unroll
    for (int wave = 0; wave < kWaves; ++wave) {
      if (wave > 0 && tile.num_rows <= wave * kWarpgroupRows) break;
      store_wave<C>(sums[wave], p, rows, wave, column0 + part.column);
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
    if constexpr (C.ping_pong) {
      for (int i = 0; i < 4; ++i) store_shared(shared.finished(i), 0u);
      for (int i = 0; i < math_warpgroups(C); ++i) barrier_init(shared.turn(i), 4);
    }
    prefetch_tensor_map(w_map);
    if constexpr (!C.gather) prefetch_tensor_map(a_map);
    for (int stage = 0; stage < C.num_stages; ++stage) {
      barrier_init(shared.full(stage), C.gather ? kWarpgroup + 1 : 1);
      barrier_init(shared.empty(stage), readers(C));
    }
    fence_barrier_init();
  }
  __syncthreads();
  if constexpr (C.cluster > 1) cluster_wait();
  constexpr bool kMoves = math_registers(C) > launch_registers(C);
  if (threadIdx.x < kWarpgroup) {
    if constexpr (kMoves) give_up_registers<kLoadRegisters>();
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
