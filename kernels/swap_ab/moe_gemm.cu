// Grouped GEMM for few rows an expert on Hopper: out[p, n] = sum_k a[row(p), k] w[e, n, k] for the
// positions p of each expert e's slots (common/params.hpp), with the operands swapped: 64 weight
// rows are a WGMMA's M and 8 to 128 rows its N, so that little is multiplied in vain and the kernel
// does what decoding needs: stream weights. GEMM1 gathers row(p) = slot / top_k; GEMM2's rows lie
// packed: row(p) = p.
//
// A tile's life. The grid is persistent: its blocks take tiles from a common list. One warp loads
// into a ring of num_stages stages of 128 bytes of K, each with a barrier that says "full" and one
// that says "empty": weights by the copy engine (TMA; for fused SwiGLU as two boxes, gate and up),
// the expert's rows by cp.async. It runs ahead from tile to tile, so that loads never pause. The
// other warps multiply, 64 weight rows a warpgroup and chunk. With block scales 128 of K go to a
// temporary which is scaled into the sums. A product lies with weight rows along the lanes'
// groups; 8x8 matrices are transposed between lanes so that a token's columns are stored together,
// or, where the weighted sum is fused, added to its row. Rows beyond the expert's end are neither
// loaded nor stored; what a stage held there before is multiplied and left out.
//
// Background: "swapAB" of TensorRT-LLM's and DeepGEMM's kernels for small M.
#include "common/params.hpp"
#include "common/sm90.cuh"
#include "common/tickets.cuh"
#include "swap_ab/config.hpp"

namespace moetune::swap_ab {

template <Config C>
using Walk = TicketWalk<(out_columns(C) + tile_columns(C) - 1) / tile_columns(C), 1>;
template <Config C>
constexpr int kSteps = (C.size_k + step_k(C) - 1) / step_k(C);
constexpr int kMathBarrier = 1;  // a named one

// Addresses in shared memory.
template <Config C>
struct Shared {
  u32 base;
  __device__ __forceinline__ u32 weights(int stage) const {
    return base + stage * operand_bytes(C);
  }
  __device__ __forceinline__ u32 rows(int stage) const {
    return weights(stage) + C.block_n * kRowBytes;
  }
  __device__ __forceinline__ u32 full(int stage) const {
    return base + C.num_stages * operand_bytes(C) + stage * kStageControlBytes;
  }
  __device__ __forceinline__ u32 empty(int stage) const { return full(stage) + 8; }
  // The tile that begins in this stage: expert, first row, rows (-1: there are no more), column
  // tile.
  __device__ __forceinline__ u32 tile(int stage) const { return full(stage) + 16; }
  // The largest value of a warp's columns, for a row of the tile.
  __device__ __forceinline__ u32 amax(int parity, int warp, int row) const {
    return full(C.num_stages) + ((parity * C.num_warps + warp) * C.block_m + row) * 4;
  }
};

// Announces the copies of the next stages that are loaded together, `step` and on, to their
// barriers and starts those of the weights: box by box, so that memory is asked for neighbouring
// bytes of a row at about the same time. The tile is posted with `first_column` added to its column
// tile.
template <Config C>
__device__ __forceinline__ void load_weights(const TensorMap& w_map, const Shared<C>& shared,
                                             const Ring<C.num_stages>& ring, int step,
                                             const Tile& tile, int first_column = 0) {
  constexpr int kBoxRows = weight_box_rows(C);
  Ring<C.num_stages> stages[C.load_steps];
#pragma unroll
  for (int i = 0; i < C.load_steps; ++i) {
    stages[i] = i == 0 ? ring : stages[i - 1];
    if (i > 0) stages[i].advance();
    const int stage = stages[i].stage;
    if (step + i == 0) {
      store_shared_16(shared.tile(stage), tile.rows.expert, tile.rows.first, tile.rows.num_rows,
                      first_column + tile.column_tile);
    }
    if (step + i < kSteps<C>) barrier_expect_bytes(shared.full(stage), C.block_n * kRowBytes);
  }
  const int row0 = tile.rows.expert * C.size_n + tile.column_tile * tile_columns(C);
#pragma unroll
  for (int r = 0; r < C.block_n; r += kBoxRows) {
    const bool up = is_fused(C) && r >= C.block_n / 2;
    const int row = row0 + r + (up ? out_columns(C) - C.block_n / 2 : 0);
#pragma unroll
    for (int i = 0; i < C.load_steps; ++i) {
      if (step + i >= kSteps<C>) break;
      const int stage = stages[i].stage;
      tma_load(shared.weights(stage) + r * kRowBytes, w_map, (step + i) * step_k(C), row,
               shared.full(stage));
    }
  }
}

// Waits until the next stages that are loaded together, `step` and on, have been read.
template <Config C>
__device__ __forceinline__ void wait_for_stages(const Shared<C>& shared, Ring<C.num_stages> ring,
                                                int step) {
#pragma unroll
  for (int i = 0; i < C.load_steps; ++i) {
    if (step + i >= kSteps<C>) break;
    barrier_wait(shared.empty(ring.stage), ring.parity ^ 1);
    ring.advance();
  }
}

// Stages whose weights may be on their way before the tile's rows are there.
template <Config C>
constexpr int kAhead =
    kSteps<C> < C.num_stages ? kSteps<C> : C.num_stages / C.load_steps* C.load_steps;

// Loads a tile stage by stage, as the warp that loads. `ahead`: stages whose weights are on their
// way already. after_step(step) is called when a step's loads have been started.
template <Config C, typename AfterStep>
__device__ __forceinline__ void load_tile(const GemmParams& p, const TensorMap& w_map,
                                          const Shared<C>& shared, Ring<C.num_stages>& ring,
                                          const Tile& current, int ahead, AfterStep&& after_step,
                                          int first_column = 0) {
  constexpr int kElement = C.fp8 ? 1 : 2;
  constexpr i64 kRowPitch = static_cast<i64>(C.size_k) * kElement;
  // A lane loads one 16-byte chunk of every fourth row.
  constexpr int kRowStep = 4;
  constexpr int kLoads = C.block_m / kRowStep;
  const int lane = threadIdx.x % 32;
  const int chunk = lane % 8;
  const int first_row = lane / 8;
  const RowTile tile = current.rows;
  u32 row_offset[kLoads];  // in 16-byte units: 32 bits reach 64 GiB
#pragma unroll
  for (int i = 0; i < kLoads; ++i) {
    const int r = first_row + i * kRowStep;
    int row = tile.first + min(r, tile.num_rows - 1);
    if constexpr (C.gather) row = __ldg(p.sorted_slots + row) / C.top_k;
    row_offset[i] = static_cast<u32>(row * (kRowPitch / 16));
  }
  for (int step = 0; step < kSteps<C>; ++step) {
    const int stage = ring.stage;
    if (step >= ahead && step % C.load_steps == 0) {
      wait_for_stages<C>(shared, ring, step);
      if (lane == 0) load_weights<C>(w_map, shared, ring, step, current, first_column);
    }
    const int k = step * step_k(C);
    const bool in_k = C.size_k % step_k(C) == 0 || k + chunk * (16 / kElement) < C.size_k;
    const u8* const source = static_cast<const u8*>(p.a) + (in_k ? k * kElement + chunk * 16 : 0);
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int r = first_row + i * kRowStep;
      if (r >= tile.num_rows) continue;
      cp_async_16(shared.rows(stage) + r * kRowBytes + (chunk ^ (r & 7)) * 16,
                  source + static_cast<i64>(row_offset[i]) * 16, in_k);
    }
    barrier_arrive_after_cp_async(shared.full(stage));
    ring.advance();
    after_step(step);
  }
}

// Tells the warps that multiply that there are no more tiles.
template <Config C>
__device__ __forceinline__ void end_tiles(const Shared<C>& shared, const Ring<C.num_stages>& ring) {
  barrier_wait(shared.empty(ring.stage), ring.parity ^ 1);
  if (threadIdx.x % 32 == 0) {
    store_shared_16(shared.tile(ring.stage), 0, 0, -1, 0);
    barrier_arrive(shared.full(ring.stage));
  }
  barrier_arrive(shared.full(ring.stage));
}

// When the next tile's ticket is taken and when it is looked up: late, so that tickets go out in
// the order in which tiles begin, but with time to read the list.
template <Config C>
constexpr int kTicketStep = kSteps<C> > 6 ? kSteps<C> - 6 : 0;
template <Config C>
constexpr int kFindStep = kSteps<C> > 3 ? kSteps<C> - 3 : kSteps<C> - 1;

template <Config C>
__device__ __forceinline__ void load_tiles(const GemmParams& p, const TensorMap& w_map,
                                           const Shared<C>& shared) {
  const int lane = threadIdx.x % 32;
  // GEMM2's tile list and weights are there before the kernel that writes its rows has ended, for
  // a kernel before it waited for the sort before it let this one start.
  if constexpr (C.gather) wait_for_previous_kernel();
  Tile next{};
  const Walk<C> walk(p, next);
  int index = walk.first();
  const auto load_ahead = [&](Ring<C.num_stages> stages) {
    for (int step = 0; step < kAhead<C>; step += C.load_steps) {
      if (lane == 0) load_weights<C>(w_map, shared, stages, step, next);
      stages.template advance<C.load_steps>();
    }
  };
  Ring<C.num_stages> ring;
  int ahead = 0;
  if (index < walk.size()) {
    ahead = kAhead<C>;
    load_ahead(ring);
  }
  if constexpr (!C.gather) wait_for_previous_kernel();
  if (lane == 0) let_next_kernel_start();
  while (index < walk.size()) {
    const Tile current = next;
    load_tile<C>(p, w_map, shared, ring, current, ahead, [&](int step) {
      if (step == kTicketStep<C> && lane == 0) index = walk.take_ticket();
      if (step == kFindStep<C>) {
        index = __shfl_sync(0xffffffffu, index, 0);
        if (index < walk.size()) next = walk.find(index);
      }
    });
    ahead = 0;
  }
  end_tiles<C>(shared, ring);
  if (lane == 0) walk.leave();
}

// Both GEMMs' tiles, A's and then B's. All go out by tickets, the first too, so that whoever has a
// tile of B knows that those of A are in the hands of blocks that run, and may wait for them. The
// weights do not wait.
template <Config A, Config B>
__device__ __forceinline__ void load_joined(const GemmParams& p1, const GemmParams& p2,
                                            const TensorMap& w1_map, const TensorMap& w2_map,
                                            const Shared<A>& shared) {
  constexpr int kColumns1 = (out_columns(A) + tile_columns(A) - 1) / tile_columns(A);
  constexpr int kColumns2 = (out_columns(B) + tile_columns(B) - 1) / tile_columns(B);
  const int lane = threadIdx.x % 32;
  const Shared<B> shared2{shared.base};
  int index = 0;
  if (lane == 0) index = add_relaxed(p1.tickets, 1);
  wait_for_previous_kernel();
  if (lane == 0) let_next_kernel_start();
  const int row_tiles = load_past_l1(p1.num_tiles);
  const int first_of_2 = row_tiles * kColumns1;
  const int size = first_of_2 + row_tiles * kColumns2;
  Tile next{};
  const auto find = [&] {
    index = __shfl_sync(0xffffffffu, index, 0);
    if (index < first_of_2) {
      next = find_tile(p1, row_tiles, kColumns1, index, load_row_tile(p1, kColumns1, index));
    } else if (index < size) {
      const int in_2 = index - first_of_2;
      next = find_tile(p2, row_tiles, kColumns2, in_2, load_row_tile(p2, kColumns2, in_2));
    }
  };
  find();
  Ring<A.num_stages> ring;
  while (index < size) {
    const Tile current = next;
    if (index < first_of_2) {
      load_tile<A>(p1, w1_map, shared, ring, current, 0, [&](int step) {
        if (step == kTicketStep<A> && lane == 0) index = add_relaxed(p1.tickets, 1);
        if (step == kFindStep<A>) find();
      });
      continue;
    }
    const int* const done = p1.tiles_done + current.rows.first;
    const auto rows_are_there = [&] { return load_acquire(done) == kColumns1 * A.num_warps; };
    int ahead = 0;
    if (!__all_sync(0xffffffffu, rows_are_there())) {
      Ring<A.num_stages> stages = ring;
      for (int step = 0; step < kAhead<B>; step += B.load_steps) {
        wait_for_stages<B>(shared2, stages, step);
        if (lane == 0) load_weights<B>(w2_map, shared2, stages, step, current, kColumns1);
        stages.template advance<B.load_steps>();
      }
      ahead = kAhead<B>;
      while (!rows_are_there()) {
      }
    }
    load_tile<B>(
        p2, w2_map, shared2, ring, current, ahead,
        [&](int step) {
          if (step == kTicketStep<B> && lane == 0) index = add_relaxed(p1.tickets, 1);
          if (step == kFindStep<B>) find();
        },
        kColumns1);
  }
  end_tiles<A>(shared, ring);
  if (lane == 0 && add_relaxed(p1.tickets + 1, 1) == static_cast<int>(gridDim.x) - 1) {
    p1.tickets[0] = 0;  // the last block sets the counters back
    p1.tickets[1] = 0;
  }
}

// What the lanes of a warp know of a tile's rows: lane l of rows l, l + 32...
template <Config C>
struct Rows {
  static constexpr int kHeld = (C.block_m + 31) / 32;
  static constexpr bool kFactors = C.scales == Scales::tensor || C.output == Output::weighted_sum;
  int target[kHeld];    // row of the output; -1: none
  float factor[kHeld];  // of the product

  __device__ __forceinline__ Rows(const GemmParams& p, const RowTile& tile) {
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int r = i * 32 + threadIdx.x % 32;
      const int position = tile.first + min(r, tile.num_rows - 1);
      const int slot = kFactors ? __ldg(p.sorted_slots + position) : 0;
      float f = 1.0f;
      if constexpr (C.scales == Scales::tensor) {
        f = __ldg(p.w_scale + tile.expert) * p.a_scale[C.gather ? slot / C.top_k : position];
      }
      if constexpr (C.output == Output::weighted_sum) f *= __ldg(p.topk_weights + slot);
      const int row = C.output == Output::weighted_sum ? slot / C.top_k : position;
      target[i] = r < tile.num_rows ? row : -1;
      factor[i] = f;
    }
  }
  // What is held of row `within` of the eights j.
  template <typename T>
  static __device__ __forceinline__ T of(const T (&held)[kHeld], int j, int within) {
    return __shfl_sync(0xffffffffu, held[j / 4], j % 4 * 8 + within);
  }
};

// Block scales, of the rows as in Rows and of the warpgroup's chunks: a step's are used while the
// next step's are on their way.
template <Config C>
struct BlockScales {
  static constexpr int kColumns = (C.size_k + kScaleGroup - 1) / kScaleGroup;
  static constexpr int kHeld = Rows<C>::kHeld;
  static constexpr int kChunks = num_chunks(C);
  int row_at[kHeld];  // of step 0
  int weight_at[kChunks];
  float next_row[kHeld];
  float next_weight[kChunks];

  __device__ __forceinline__ BlockScales(const GemmParams& p, const RowTile& tile, int column0,
                                         int warpgroup) {
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int r = i * 32 + threadIdx.x % 32;
      const int position = tile.first + min(r, tile.num_rows - 1);
      row_at[i] = C.gather ? __ldg(p.sorted_slots + position) / C.top_k * kColumns : position;
      next_row[i] = load_past_l1(p.a_scale + row_at[i]);
    }
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const bool up = is_fused(C) && c >= kChunks / 2;
      const int in_tile =
          ((up ? c - kChunks / 2 : c) * math_warpgroups(C) + warpgroup) * kWarpgroupRows;
      const int row = min((up ? out_columns(C) : 0) + column0 + in_tile, C.size_n - 1);
      weight_at[c] = (tile.expert * (C.size_n / kScaleGroup) + row / kScaleGroup) * kColumns;
      next_weight[c] = __ldg(p.w_scale + weight_at[c]);
    }
  }
  __device__ __forceinline__ void take(float (&rows)[kHeld], float (&weights)[kChunks],
                                       const GemmParams& p, int step) {
    const int ahead = min(step + 1, kColumns - 1);
    const i64 to_next = C.gather ? ahead : static_cast<i64>(ahead) * p.scale_pitch;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      rows[i] = next_row[i];
      next_row[i] = load_past_l1(p.a_scale + row_at[i] + to_next);
    }
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      weights[c] = next_weight[c];
      next_weight[c] = __ldg(p.w_scale + weight_at[c] + ahead);
    }
  }
};

// Sums or products of a warpgroup: chunk, then as Wgmma lays them out.
template <Config C>
using Sums = float[num_chunks(C)][C.block_m / 2];

// Starts a stage's multiplications. `first`: the sums start here.
template <Config C>
__device__ __forceinline__ void multiply(Sums<C>& sums, const Shared<C>& shared, int stage,
                                         int warpgroup, bool first) {
  constexpr u32 kChunkStep = math_warpgroups(C) * kWarpgroupRows * kRowBytes / 16;
  const u32 weights =
      matrix_descriptor(shared.weights(stage) + warpgroup * kWarpgroupRows * kRowBytes);
  const u32 rows = matrix_descriptor(shared.rows(stage));
  wgmma_begin();
#pragma unroll
  for (int k = 0; k < 4; ++k) {
#pragma unroll
    for (int c = 0; c < num_chunks(C); ++c) {
      const int accumulate = k > 0 || !first;
      if constexpr (C.fp8) {
        Wgmma<C.block_m>::e4m3(sums[c], weights + c * kChunkStep + k * 2, rows + k * 2, accumulate);
      } else {
        Wgmma<C.block_m>::bf16(sums[c], weights + c * kChunkStep + k * 2, rows + k * 2, accumulate);
      }
    }
  }
  wgmma_commit();
}

// The even lane of a pair gets both low words, the odd one both high words: four neighbouring
// columns each, at exchanged_column() of 16.
__device__ __forceinline__ uint2 exchange(u32 low, u32 high) {
  const bool odd = threadIdx.x % 2 > 0;
  const u32 other = __shfl_xor_sync(0xffffffffu, odd ? low : high, 1);
  return odd ? make_uint2(other, high) : make_uint2(low, other);
}
__device__ __forceinline__ int exchanged_column() {
  return threadIdx.x % 2 * 8 + threadIdx.x % 4 / 2 * 4;
}

// Stores a tile. A thread holds, of each chunk and eight rows (j), sums of two rows j * 8 +
// lane % 4 * 2 + {0, 1} and two columns lane / 4 + {0, 8} of its warp's 16.
template <Config C>
__device__ __forceinline__ void store(Sums<C>& sums, const GemmParams& p, const Shared<C>& shared,
                                      const Rows<C>& rows, int num_rows, int column0, int warpgroup,
                                      int parity) {
  constexpr int kOutChunks = is_fused(C) ? num_chunks(C) / 2 : num_chunks(C);
  constexpr int kElement = C.output == Output::swiglu_fp8 ? 1 : 2;
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
#pragma unroll
  for (int j = 0; j < C.block_m / 8; ++j) {
    if (j * 8 >= num_rows) break;
    float factors[2] = {1.0f, 1.0f};
    if constexpr (Rows<C>::kFactors) {
      factors[0] = Rows<C>::of(rows.factor, j, lane % 4 * 2);
      factors[1] = Rows<C>::of(rows.factor, j, lane % 4 * 2 + 1);
    }
    float amax[2] = {};
#pragma unroll
    for (int c = 0; c < kOutChunks; ++c) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float& x = sums[c][j * 4 + i];
        x *= factors[i % 2];
        if constexpr (is_fused(C)) {
          x = silu(x) * (sums[c + kOutChunks][j * 4 + i] * factors[i % 2]);
        }
        amax[i % 2] = fmaxf(amax[i % 2], fabsf(x));
      }
    }
    if constexpr (C.output == Output::swiglu_fp8) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
#pragma unroll
        for (int d = 4; d < 32; d *= 2) {
          amax[h] = fmaxf(amax[h], __shfl_xor_sync(0xffffffffu, amax[h], d));
        }
        if (lane < 4) {
          store_shared(shared.amax(parity, warp, j * 8 + lane * 2 + h), __float_as_uint(amax[h]));
        }
      }
    }
  }
  if constexpr (C.output == Output::swiglu_fp8) warps_sync<C.num_warps * 32>(kMathBarrier);

#pragma unroll
  for (int j = 0; j < C.block_m / 8; ++j) {
    if (j * 8 >= num_rows) break;
    const int target = Rows<C>::of(rows.target, j, lane / 4);
    float inverse[2];
    if constexpr (C.output == Output::swiglu_fp8) {
      static_assert(tile_columns(C) == kScaleGroup, "a tile quantises one scale group a row");
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int within = lane % 4 * 2 + h;
        float amax = 0.0f;
#pragma unroll
        for (int w = 0; w < C.num_warps; ++w) {
          amax =
              fmaxf(amax, __uint_as_float(load_shared_u32(shared.amax(parity, w, j * 8 + within))));
        }
        const float scale = amax > 0.0f ? amax / 448.0f : 1.0f;
        inverse[h] = 1.0f / scale;
        const int scale_row = Rows<C>::of(rows.target, j, within);
        if (threadIdx.x < 4 && scale_row >= 0) {
          p.out_scale[static_cast<i64>(column0 / kScaleGroup) * p.scale_pitch + scale_row] = scale;
        }
      }
    }
#pragma unroll
    for (int c = 0; c < kOutChunks; ++c) {
      const int column = column0 + (c * math_warpgroups(C) + warpgroup) * kWarpgroupRows +
                         warp % 4 * 16 + exchanged_column();
      const float* const v = &sums[c][j * 4];
      u8* const to =
          static_cast<u8*>(p.out) + (static_cast<i64>(target) * out_columns(C) + column) * kElement;
      const bool stores =
          target >= 0 && (out_columns(C) % tile_columns(C) == 0 || column < out_columns(C));
      if constexpr (C.output == Output::swiglu_fp8) {
        // An element of the 8x8 matrix is two columns, 8 apart.
        const u32 packed = transpose_8x8(pack_e4m3(v[0] * inverse[0], v[2] * inverse[0]) |
                                         pack_e4m3(v[1] * inverse[1], v[3] * inverse[1]) << 16);
        const uint2 words =
            exchange(__byte_perm(packed, 0, 0x4420), __byte_perm(packed, 0, 0x4431));
        if (stores) *reinterpret_cast<u32*>(to) = words.x | words.y << 16;
      } else {
        const uint2 words =
            exchange(transpose_8x8(pack_bf16(v[0], v[1])), transpose_8x8(pack_bf16(v[2], v[3])));
        if (!stores) continue;
        if constexpr (C.output == Output::weighted_sum) {
          add_four_bf16(to, words);
        } else {
          *reinterpret_cast<uint2*>(to) = words;
        }
      }
    }
  }
}

// Multiplies a tile whose first stage is full, and stores it.
template <Config C>
__device__ __forceinline__ void multiply_tile(const GemmParams& p, const Shared<C>& shared,
                                              Ring<C.num_stages>& ring, const RowTile& tile,
                                              int column_tile, int parity) {
  constexpr int kChunks = num_chunks(C);
  const int warpgroup = threadIdx.x / kWarpgroup;
  const int lane = threadIdx.x % 32;
  const int column0 = column_tile * tile_columns(C);
  const auto release = [&](int stage) {
    __syncwarp();
    if (lane == 0) barrier_arrive(shared.empty(stage));
  };
  const Rows<C> rows(p, tile);
  Sums<C> sums;
  if constexpr (C.scales == Scales::block) {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
#pragma unroll
      for (int i = 0; i < C.block_m / 2; ++i) sums[c][i] = 0.0f;
    }
    BlockScales<C> scales(p, tile, column0, warpgroup);
#pragma unroll 1
    for (int step = 0; step < kSteps<C>; ++step) {
      float row_scales[Rows<C>::kHeld];
      float weight_scales[kChunks];
      scales.take(row_scales, weight_scales, p, step);
      barrier_wait(shared.full(ring.stage), ring.parity);
      Sums<C> products;
      multiply<C>(products, shared, ring.stage, warpgroup, true);
      float low[C.block_m / 8];  // scales of the thread's two rows of eight
      float high[C.block_m / 8];
#pragma unroll
      for (int j = 0; j < C.block_m / 8; ++j) {
        low[j] = Rows<C>::of(row_scales, j, lane % 4 * 2);
        high[j] = Rows<C>::of(row_scales, j, lane % 4 * 2 + 1);
      }
      wgmma_wait<0>();
      release(ring.stage);
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        wgmma_results(products[c]);
#pragma unroll
        for (int i = 0; i < C.block_m / 2; ++i) {
          sums[c][i] += (i % 2 == 0 ? low : high)[i / 4] * weight_scales[c] * products[c][i];
        }
      }
      ring.advance();
    }
  } else {
    // A step's multiplications run on while the next one's are started.
    int before = 0;
#pragma unroll 1
    for (int step = 0; step < kSteps<C>; ++step) {
      barrier_wait(shared.full(ring.stage), ring.parity);
      multiply<C>(sums, shared, ring.stage, warpgroup, step == 0);
      if (step > 0) {
        wgmma_wait<1>();
        release(before);
      }
      before = ring.stage;
      ring.advance();
    }
    wgmma_wait<0>();
    release(before);
#pragma unroll
    for (int c = 0; c < kChunks; ++c) wgmma_results(sums[c]);
  }
  store<C>(sums, p, shared, rows, tile.num_rows, column0, warpgroup, parity);
}

// Calls multiply(tile, column tile, parity) for tile after tile as they are posted.
template <Config C, typename Multiply>
__device__ __forceinline__ void for_each_tile(const Shared<C>& shared,
                                              const Ring<C.num_stages>& ring, Multiply&& multiply) {
  for (int parity = 0;; parity ^= 1) {
    barrier_wait(shared.full(ring.stage), ring.parity);
    const uint4 posted = load_16_for_warp(shared.tile(ring.stage));
    const RowTile tile{static_cast<int>(posted.x), static_cast<int>(posted.y),
                       static_cast<int>(posted.z), 0};
    if (tile.num_rows < 0) break;
    multiply(tile, static_cast<int>(posted.w), parity);
  }
}

template <Config C>
__device__ __forceinline__ void multiply_tiles(const GemmParams& p, const Shared<C>& shared) {
  wait_for_previous_kernel();
  Ring<C.num_stages> ring;
  for_each_tile<C>(shared, ring, [&](const RowTile& tile, int column_tile, int parity) {
    multiply_tile<C>(p, shared, ring, tile, column_tile, parity);
  });
}

template <Config A, Config B>
__device__ __forceinline__ void multiply_joined(const GemmParams& p1, const GemmParams& p2,
                                                const Shared<A>& shared) {
  constexpr int kColumns1 = (out_columns(A) + tile_columns(A) - 1) / tile_columns(A);
  wait_for_previous_kernel();
  Ring<A.num_stages> ring;
  for_each_tile<A>(shared, ring, [&](const RowTile& tile, int column_tile, int parity) {
    if (column_tile < kColumns1) {
      multiply_tile<A>(p1, shared, ring, tile, column_tile, parity);
      __syncwarp();
      if (threadIdx.x % 32 == 0) add_release(p1.tiles_done + tile.first, 1);
    } else {
      multiply_tile<B>(p2, Shared<B>{shared.base}, ring, tile, column_tile - kColumns1, parity);
    }
  });
}

template <Config C>
__device__ __forceinline__ void initialise(const Shared<C>& shared) {
  if (shared.base % 1024 != 0) __trap();  // the swizzle counts on it
  for (int stage = 0; stage < C.num_stages; ++stage) {
    barrier_init(shared.full(stage), 33);  // the announcement, and each lane's cp.async
    barrier_init(shared.empty(stage), C.num_warps);
  }
  fence_barrier_init();
}

template <Config C>
__global__ void __launch_bounds__(num_threads(C), C.blocks_per_sm)
    moe_gemm(const GemmParams p, const __grid_constant__ TensorMap w_map,
             const __grid_constant__ TensorMap) {
  static_assert(num_chunks(C) >= (is_fused(C) ? 2 : 1), "the host's rules let this pass");
  extern __shared__ __align__(1024) u8 smem[];
  const Shared<C> shared{smem_address(smem)};
  if (threadIdx.x == 0) {
    prefetch_tensor_map(w_map);
    initialise<C>(shared);
  }
  __syncthreads();
  if (threadIdx.x >= C.num_warps * 32) {
    load_tiles<C>(p, w_map, shared);
  } else {
    multiply_tiles<C>(p, shared);
  }
}

// Both GEMMs of a layer in one launch: A is GEMM1, whose epilogue writes what B, GEMM2, reads.
// Their tiles are of one shape, and one ring of stages serves both, so that the weights' loads do
// not pause between the two.
template <Config A, Config B>
__global__ void __launch_bounds__(num_threads(A), A.blocks_per_sm)
    moe_joined(const GemmParams p1, const GemmParams p2, const __grid_constant__ TensorMap w1_map,
               const __grid_constant__ TensorMap w2_map) {
  static_assert(A.block_m == B.block_m && A.block_n == B.block_n && A.num_warps == B.num_warps &&
                A.num_stages == B.num_stages && is_fused(A));
  extern __shared__ __align__(1024) u8 smem[];
  const Shared<A> shared{smem_address(smem)};
  if (threadIdx.x == 0) {
    prefetch_tensor_map(w1_map);
    prefetch_tensor_map(w2_map);
    initialise<A>(shared);
  }
  __syncthreads();
  if (threadIdx.x >= A.num_warps * 32) {
    load_joined<A, B>(p1, p2, w1_map, w2_map, shared);
  } else {
    multiply_joined<A, B>(p1, p2, shared);
  }
}

}  // namespace moetune::swap_ab
