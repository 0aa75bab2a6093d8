// Grouped GEMM for Hopper: out[p, n] = sum_k a[row(p), k] w[e, n, k] for the positions p of each
// expert e's slots (common/params.hpp). GEMM1 may gather row(p) = slot / top_k; otherwise, and in
// GEMM2, rows lie packed: row(p) = p.
//
// A tile's life. The grid is persistent: its blocks take tiles from a common list. In a block one
// warpgroup loads and the others multiply; a ring of num_stages stages of 128 bytes of K lies
// between them, each with a barrier that says "full" and one that says "empty".
//   Load: the copy engine (TMA) fetches the weight rows, for fused SwiGLU as two boxes, gate and
//   up, and packed activation rows. Gathered rows come by cp.async, all 128 threads taking part (a
//   TMA box a row is several times slower); in bf16, where an expert has many, packing them first
//   is faster (results/NVIDIA_H200/notes.md). A packed box that crosses its expert's end reads the
//   next expert's rows: harmless. The two blocks of a cluster have two row tiles of a column, of
//   whose weights each loads a half for both; or, where an expert has rows for one tile only, two
//   columns of it, and load its rows for each other. Their rows lie packed. Multiply: a warpgroup
//   owns 64 rows. WGMMA reads both operands from shared memory and adds up in registers. With block
//   scales 128 of K go to a temporary which is scaled into the accumulators, while the other
//   warpgroups keep the tensor cores busy. 64 rows without a slot are not multiplied. Store: four
//   lanes hold a row's eight columns; they exchange words, so that each has 16 bytes to store or,
//   where the weighted sum is fused, to add to the token's row. Rows beyond the expert's end are
//   left out. No padding is written.
//
// Background: DeepGEMM and CUTLASS describe this division of labour; two-level accumulation is
// DeepSeek-V3's (arXiv 2412.19437, section 3.3.2).
#include "common/params.hpp"
#include "common/sm90.cuh"
#include "common/tickets.cuh"
#include "hopper/config.hpp"
#include "hopper/store.cuh"

namespace moetune {

template <HopperConfig C>
constexpr int kColumnTiles = (out_columns(C) + tile_columns(C) - 1) / tile_columns(C);
template <HopperConfig C>
using Walk = TicketWalk<kColumnTiles<C>, C.cluster>;

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
  // The cluster's tile that begins in this stage: expert, first row, rows (-1: there are no more),
  // column tile; and the barrier that tells the second block's loading warpgroup of it.
  __device__ __forceinline__ u32 tile(int stage) const { return full(stage) + 16; }
  __device__ __forceinline__ u32 posted(int stage) const { return full(stage) + 32; }
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

// A block's share of its cluster's tile: the second block has the rows below the first one's or,
// where there are none, the next column, which the walk then leaves out.
template <HopperConfig C>
struct Share {
  int first;     // row
  int num_rows;  // 0: it has nothing to do
  int column_tile;
  bool rows_for_both;     // the two have the same rows
  bool weights_for_both;  // or the same weights
  __device__ __forceinline__ Share(const Tile& tile, int rank)
      : first(tile.rows.first),
        num_rows(min(tile.rows.num_rows, C.block_m)),
        column_tile(tile.column_tile),
        rows_for_both(false),
        weights_for_both(false) {
    if constexpr (C.cluster > 1) {
      weights_for_both = tile.rows.num_rows > C.block_m;
      if (weights_for_both) {
        first += rank * C.block_m;
        num_rows = min(tile.rows.num_rows - rank * C.block_m, C.block_m);
      } else {
        rows_for_both = tile.column_tile + 1 < kColumnTiles<C>;
        column_tile += rank;
        if (rank > 0 && !rows_for_both) num_rows = 0;
      }
    }
  }
};
template <HopperConfig C>
__device__ __forceinline__ bool is_taken(const Tile& tile) {
  return C.cluster > 1 && tile.rows.num_rows >= 0 && tile.rows.num_rows <= C.block_m &&
         tile.column_tile % 2 == 1;
}
template <HopperConfig C>
__device__ __forceinline__ int rank_in_cluster() {
  return C.cluster > 1 ? static_cast<int>(cluster_rank()) : 0;
}

// The tile, but so that what follows from it is computed anew each step: kept, it would not fit the
// loading warpgroup's registers.
template <HopperConfig C>
__device__ __forceinline__ Tile not_kept(Tile tile) {
  if constexpr (C.cluster > 1) {
    asm volatile("" : "+r"(tile.rows.num_rows), "+r"(tile.rows.first), "+r"(tile.column_tile));
  }
  return tile;
}

// Tells the multiplying warpgroups, and the cluster's second block, what tile begins in a stage.
template <HopperConfig C>
__device__ __forceinline__ void post(const Shared<C>& shared, int stage, const Tile& tile) {
  store_shared_16(shared.tile(stage), tile.rows.expert, tile.rows.first, tile.rows.num_rows,
                  tile.column_tile);
  if constexpr (C.cluster > 1) {
    const u32 posted = in_block(shared.posted(stage), 1);
    remote_expect_bytes(posted, 16);
    remote_store_16(in_block(shared.tile(stage), 1), tile.rows.expert, tile.rows.first,
                    tile.rows.num_rows, tile.column_tile, posted);
  }
}

// Announces a stage's copies to its barrier and starts those of the weights.
template <HopperConfig C>
__device__ __forceinline__ void load_weights(const TensorMap& w_map, const Shared<C>& shared,
                                             int stage, int step, const Tile& current) {
  constexpr int kBoxRows = weight_box_rows(C);
  constexpr int kBoxPitch = is_fused(C) ? out_columns(C) : kBoxRows;  // weight rows between boxes
  const Tile tile = not_kept<C>(current);
  const int rank = rank_in_cluster<C>();
  const Share<C> share(tile, rank);
  const u32 full = shared.full(stage);
  const int k = step * step_k(C);
  const int row = tile.rows.expert * C.size_n + share.column_tile * tile_columns(C);
  const int row_boxes = C.gather ? 0 : (share.num_rows + kRowBoxRows - 1) / kRowBoxRows;
  if (C.cluster > 1 && share.num_rows == 0) return barrier_arrive(full);
  barrier_expect_bytes(full, (C.block_n + row_boxes * kRowBoxRows) * kRowBytes);
#pragma unroll
  for (int box = 0; box < C.block_n / kBoxRows; ++box) {
    const u32 to = shared.b(stage) + box * kBoxRows * kRowBytes;
    if (!share.weights_for_both) {
      tma_load(to, w_map, k, row + box * kBoxPitch, full);
    } else if (box == rank) {
      tma_load_to(3, to, w_map, k, row + box * kBoxPitch, full);
    }
  }
}

// Starts a stage's copies of packed rows.
template <HopperConfig C>
__device__ __forceinline__ void load_rows(const TensorMap& a_map, const Shared<C>& shared,
                                          int stage, int step, const Tile& current) {
  const int rank = rank_in_cluster<C>();
  const Share<C> share(not_kept<C>(current), rank);
  const u32 full = shared.full(stage);
  const int k = step * step_k(C);
#pragma unroll
  for (int box = 0; box < C.block_m; box += kRowBoxRows) {
    if (box >= share.num_rows) break;
    const u32 to = shared.a(stage) + box * kRowBytes;
    if (!share.rows_for_both) {
      tma_load(to, a_map, k, share.first + box, full);
    } else if (box / kRowBoxRows % 2 == rank) {
      tma_load_to(3, to, a_map, k, share.first + box, full);
    }
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
  const int rank = rank_in_cluster<C>();
  const int chunk = thread % 8;
  const int first_row = thread / 8;
  const u32 chunk_at = first_row * kRowBytes + (chunk ^ (first_row & 7)) * 16;

  // GEMM2's tile list and weights are there before the kernel that writes its rows has ended, for
  // that kernel itself waited for the sort before it let this one start.
  if constexpr (kGather) wait_for_previous_kernel();
  Tile next{};
  const Walk<C> walk(p, next);
  int index = walk.first();
  const auto find = [&] {
    if (index < walk.size()) next = walk.find(index);
    if (index >= walk.size()) next.rows.num_rows = -1;
  };
  const auto skip_taken = [&] {
    while (is_taken<C>(next)) {
      index = walk.take_ticket();
      find();
    }
  };
  if (index >= walk.size()) next.rows.num_rows = -1;  // there are no more
  // The cluster's second block is told its tiles by the first.
  u32 posted_parity = 0;  // a bit a stage
  const auto receive = [&](int stage) {
    barrier_wait(shared.posted(stage), posted_parity >> stage & 1);
    posted_parity ^= 1u << stage;
    const uint4 v = load_shared_16(shared.tile(stage));
    next = {{static_cast<int>(v.x), static_cast<int>(v.y), static_cast<int>(v.z), 0},
            static_cast<int>(v.w)};
  };
  if (rank > 0) receive(0);
  int ahead = 0;  // stages whose weights are on their way
  if (next.rows.num_rows >= 0 && !is_taken<C>(next)) {
    ahead = kSteps<C> < C.num_stages ? kSteps<C> : C.num_stages;
    if (thread == 0) {
      if (rank == 0) post<C>(shared, 0, next);
      for (int i = 0; i < ahead; ++i) load_weights<C>(w_map, shared, i, i, next);
    }
  }
  if constexpr (!kGather) wait_for_previous_kernel();
  if (thread == 0) let_next_kernel_start();
  if (rank == 0) skip_taken();

  // Late, so that tickets go out in the order in which tiles begin, but with time to read the list.
  constexpr int kLast = kSteps<C> - 1;
  constexpr int kTicketStep = kLast > 5 ? kLast - 5 : 0;
  constexpr int kFindStep = kLast > 2 ? kLast - 2 : kLast;
  Ring<C.num_stages> ring;
  for (int parity = 0; next.rows.num_rows >= 0; parity ^= 1) {
    const Tile current = next;
    const Share<C> share(current, rank);
    u32 row_offset[kGather ? kLoads : 1];  // in 16-byte units: 32 bits reach 64 GiB
    if constexpr (kGather) {
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const int r = first_row + i * kRowStep;
        const int slot = r < share.num_rows ? __ldg(p.sorted_slots + share.first + r) : 0;
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
        if (thread == 0) {
          if (rank == 0 && step == 0) post<C>(shared, stage, current);
          load_weights<C>(w_map, shared, stage, step, current);
        }
      }
      if (thread == 0 && rank == 0 && step == kTicketStep) index = walk.take_ticket();
      if constexpr (!kGather) {
        load_rows<C>(a_map, shared, stage, step, current);
      } else {
        const int k = step * step_k(C);
        const bool in_k = C.size_k % step_k(C) == 0 || k + chunk * (16 / kElement) < C.size_k;
        const u8* const source =
            static_cast<const u8*>(p.a) + (in_k ? k * kElement + chunk * 16 : 0);
#pragma unroll
        for (int i = 0; i < kLoads; ++i) {
          if (first_row + i * kRowStep >= share.num_rows) continue;
          cp_async_16(shared.a(stage) + chunk_at + i * kRowStep * kRowBytes,
                      source + static_cast<i64>(row_offset[i]) * 16, in_k);
        }
        barrier_arrive_after_cp_async(full);
      }
      ring.advance();
      if (rank == 0 && step == kFindStep) {
        if constexpr (kGather) {
          if (thread == 0) store_shared(shared.next_index(parity), static_cast<u32>(index));
          warps_sync<kWarpgroup>(kLoadBarrier);
          index = static_cast<int>(load_shared_u32(shared.next_index(parity)));
        }
        find();
        skip_taken();
      }
    }
    if (rank > 0) receive(ring.stage);
  }
  if (rank == 0) barrier_wait(shared.empty(ring.stage), ring.parity ^ 1);
  if (thread == 0) {
    if (rank == 0) post<C>(shared, ring.stage, {{0, 0, -1, 0}, 0});
    barrier_arrive(shared.full(ring.stage));
    if (rank == 0) walk.leave();
  }
  if constexpr (kGather) barrier_arrive(shared.full(ring.stage));
}

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
    }
    load(p, 0);
  }
  __device__ __forceinline__ void load(const GemmParams& p, int step) {
#pragma unroll
    for (int c = 0; c < num_chunks(C); ++c) next[c] = load_constant(p.w_scale + at[c] + step);
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
    }
    load(p, 0);
  }
  __device__ __forceinline__ void load(const GemmParams& p, int step) {
    const i64 to_step = C.gather ? step : static_cast<i64>(step) * p.scale_pitch;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) next[i] = load_now(p.a_scale + at[i] + to_step);
  }
};

// What a step's products are multiplied by: of a wave's two rows and a chunk.
template <HopperConfig C>
struct StepScales {
  float of[num_waves(C)][num_chunks(C)][2];
  // Takes a step's and asks for the next one's.
  __device__ __forceinline__ void take(WeightScales<C>& weights, RowScales<C>& rows,
                                       const GemmParams& p, int step) {
#pragma unroll
    for (int i = 0; i < num_waves(C) * 2; ++i) {
      const float row =
          __shfl_sync(0xffffffffu, rows.next[i / 4], (threadIdx.x & 28) | static_cast<u32>(i % 4));
#pragma unroll
      for (int c = 0; c < num_chunks(C); ++c) of[i / 2][c][i % 2] = row * weights.next[c];
    }
    const int next = min(step + 1, WeightScales<C>::kColumns - 1);
    weights.load(p, next);
    rows.load(p, next);
  }
};

// Where a warpgroup's operands of a stage begin, as WGMMA wants to know.
template <HopperConfig C>
struct Operands {
  u32 a, b;
  __device__ __forceinline__ Operands(const Shared<C>& shared, int stage, const Part<C>& part)
      : a(matrix_descriptor(shared.a(stage) + part.row0 * kRowBytes)),
        b(matrix_descriptor(shared.b(stage) + part.chunk0 * kRowBytes)) {}
};

// One stage of the first kWaves times 64 rows, plainly: starts it and lets it run. `first`: the
// sums start here.
template <HopperConfig C, int kWaves>
__device__ __forceinline__ void multiply(Sums<C> (&sums)[num_waves(C)], const Shared<C>& shared,
                                         int stage, const Part<C>& part, bool first) {
  using Chunk = Wgmma<Sums<C>::kChunkColumns>;
  constexpr int kChunks = num_chunks(C);
  constexpr u32 kChunkStep =
      (is_fused(C) ? C.block_n / 2 : Sums<C>::kChunkColumns) * kRowBytes / 16;
  constexpr u32 kWaveStep = kWarpgroupRows * kRowBytes / 16;
  const Operands<C> at(shared, stage, part);
  wgmma_begin();
#pragma unroll
  for (int k = 0; k < 4; ++k) {
#pragma unroll
    for (int wave = 0; wave < kWaves; ++wave) {
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        const int accumulate = k > 0 || !first;
        const u32 a_at = at.a + wave * kWaveStep + k * 2;
        const u32 b_at = at.b + c * kChunkStep + k * 2;
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
// the other warpgroups keep the tensor cores busy. What else a step needs is done while its own
// multiplications run, for then it costs nothing: `begun` is called in the shadow of the first
// ones, `ending` in that of the last; `read` when the stage has been read.
template <HopperConfig C, int kWaves, typename Begun, typename Ending, typename Read>
__device__ __forceinline__ void multiply_scaled(Sums<C> (&sums)[num_waves(C)], const Operands<C> at,
                                                const StepScales<C>& scales, Begun&& begun,
                                                Ending&& ending, Read&& read) {
  constexpr int kChunks = num_chunks(C);
  constexpr int kChunkColumns = Sums<C>::kChunkColumns;
  constexpr u32 kChunkStep = (is_fused(C) ? C.block_n / 2 : kChunkColumns) * kRowBytes / 16;
  constexpr u32 kWaveStep = kWarpgroupRows * kRowBytes / 16;
#pragma unroll
  for (int wave = 0; wave < kWaves; ++wave) {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const bool is_last = wave == kWaves - 1 && c == kChunks - 1;
      float product[kChunkColumns / 2];
      wgmma_begin();
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        Wgmma<kChunkColumns>::e4m3(product, at.a + wave * kWaveStep + k * 2,
                                   at.b + c * kChunkStep + k * 2, k > 0);
      }
      wgmma_commit();
      if (wave == 0 && c == 0) begun();
      if (is_last) ending();
      wgmma_wait<0>();
      if (is_last) read();
      wgmma_results(product);
#pragma unroll
      for (int i = 0; i < kChunkColumns / 2; ++i) {
        sums[wave].of[c][i] += scales.of[wave][c][i / 2 % 2] * product[i];
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
  const int rank = rank_in_cluster<C>();

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
    const Share<C> share(
        {{static_cast<int>(posted.x), static_cast<int>(posted.y), static_cast<int>(posted.z), 0},
         static_cast<int>(posted.w)},
        rank);
    const RowTile tile{static_cast<int>(posted.x), share.first, share.num_rows, 0};
    if (static_cast<int>(posted.z) < 0) {
      if constexpr (C.ping_pong) {
        if (lane == 0) store_shared(shared.finished(threadIdx.x / 32), 1u);
        pass_turn();
      }
      break;
    }
    const int column0 = share.column_tile * tile_columns(C);
    const auto release = [&](int stage) {
      __syncwarp();  // all lanes have read it
      if (lane != 0) return;
      barrier_arrive(shared.empty(stage));
      if constexpr (C.cluster > 1) remote_arrive(in_block(shared.empty(stage), rank ^ 1));
    };
    bool is_full = false;  // the stage, as was seen ahead of time
    const auto run = [&]<typename Step>(Step&& step) {
      is_full = false;
#pragma unroll 1
      for (int i = 0; i < kSteps<C>; ++i) {
        if (!is_full) barrier_wait(shared.full(ring.stage), ring.parity);
        if constexpr (C.ping_pong) {
          if (i == kSteps<C> - 1) pass_turn();
        }
        step(i);
      }
      if constexpr (C.ping_pong) {
        ring.template advance<kSteps<C>*(math_warpgroups(C) - 1)>();
      }
    };
    if (part.row0 >= tile.num_rows) {  // nothing here for these warps
      run([&](int) {
        release(ring.stage);
        ring.advance();
      });
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
        Operands<C> operands(shared, ring.stage, part);
        run([&](int i) {
          const int stage = ring.stage;
          StepScales<C> scales;
          multiply_scaled<C, kCount>(
              sums, operands, scales, [&] { scales.take(weight_scales, row_scales, p, i); },
              [&] {
                ring.advance();
                operands = Operands<C>(shared, ring.stage, part);
                is_full = i + 1 < kSteps<C> && barrier_test(shared.full(ring.stage), ring.parity);
              },
              [&] { release(stage); });
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
          ring.advance();
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
      barrier_init(shared.posted(stage), 1);
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
