// The kernels around the grouped GEMMs: sort slots by expert, quantise rows, SwiGLU, weighted sum.
//
// Sorting groups slots by expert without padding and lists, for up to two tile heights at once
// (GEMM1's and GEMM2's), the row tiles.
#include "common/params.hpp"
#include "common/ptx.cuh"
#include "common/routing.cuh"
#include "support/params.hpp"

namespace moetune {

constexpr int kMaxExperts = 1024;
constexpr int kMaxThreads = 1024;
constexpr int kSmallSortLoads = 8;  // slots a thread of sort_small takes, at most

// What the experts before one have, and this one: slots, and row tiles of both lists, in 21 bits
// each.
constexpr int kSumBits = 21;
__device__ __forceinline__ int part(u64 sums, int which) {
  return static_cast<int>(sums >> which * kSumBits) & ((1 << kSumBits) - 1);
}

// Inclusive prefix sum over the block's threads.
__device__ __forceinline__ u64 block_scan(u64 value, u64* warp_sums) {
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const u64 other = __shfl_up_sync(0xffffffffu, value, d);
    if (lane >= d) value += other;
  }
  if (lane == 31) warp_sums[warp] = value;
  __syncthreads();
  u64 before = lane < warp ? warp_sums[lane] : 0;
#pragma unroll
  for (int d = 16; d > 0; d /= 2) before += __shfl_xor_sync(0xffffffffu, before, d);
  return value + before;
}

// Shared memory of a sorting block.
struct Sorting {
  int counts[kMaxExperts];
  u64 ends[kMaxExperts + 1];  // sums up to an expert's begin
  u64 warp_sums[32];
  __device__ __forceinline__ int first_slot(int expert) const { return part(ends[expert], 0); }
};

// From counts of slots: `ends`, and both tile lists, which the grid's sorting blocks share. Needs a
// thread an expert.
__device__ __forceinline__ void scan_and_list(const SortParams& p, Sorting& s, int num_blocks) {
  const int e = threadIdx.x;
  const int num_threads = blockDim.x;
  u64 sums = 0;
  if (e < p.ids.num_experts) {
    const int count = s.counts[e];
    sums = count;
#pragma unroll
    for (int which = 0; which < 2; ++which) {
      const int block_m = p.block_m[which];
      if (block_m == 0) continue;
      sums |= static_cast<u64>((count + block_m - 1) / block_m) << (which + 1) * kSumBits;
    }
  }
  sums = block_scan(sums, s.warp_sums);
  if (e == 0) s.ends[0] = 0;
  if (e < p.ids.num_experts) s.ends[e + 1] = sums;
  __syncthreads();
#pragma unroll
  for (int which = 0; which < 2; ++which) {
    const int block_m = p.block_m[which];
    if (block_m == 0) continue;
    const auto first_tile = [&](int expert) { return part(s.ends[expert], which + 1); };
    const int total = first_tile(p.ids.num_experts);
    if (e == 0 && blockIdx.x == 0) *p.num_tiles[which] = total;
    for (int tile = blockIdx.x * num_threads + e; tile < total; tile += num_blocks * num_threads) {
      int low = 0;  // the expert with first_tile(expert) <= tile < first_tile(expert + 1)
      int high = p.ids.num_experts;
      while (high - low > 1) {
        const int middle = (low + high) / 2;
        if (first_tile(middle) <= tile) {
          low = middle;
        } else {
          high = middle;
        }
      }
      const int number = tile - first_tile(low);
      const int tiles = first_tile(low + 1) - first_tile(low);
      // Groups of about the same size, at most group_m.
      const int groups = (tiles + p.group_m[which] - 1) / p.group_m[which];
      const int size = (tiles + groups - 1) / groups;
      const int in_group = number % size;
      const int in_this_group = min(size, tiles - (number - in_group));
      const int first = s.first_slot(low) + number * block_m;
      *reinterpret_cast<int4*>(&p.tiles[which][tile]) = make_int4(
          low, first, min(block_m, s.first_slot(low + 1) - first), in_this_group << 16 | in_group);
      if (which == 1 && p.tiles_done != nullptr) p.tiles_done[first] = 0;
    }
  }
}

constexpr float kE4m3Max = 448.0f;

// The scale that maps `amax` to e4m3's largest value; 1 for a row of zeros.
__device__ __forceinline__ float e4m3_scale(float amax) {
  return amax > 0.0f ? amax / kE4m3Max : 1.0f;
}

template <int kLanes>
__device__ __forceinline__ float group_max(float value) {
#pragma unroll
  for (int d = kLanes / 2; d > 0; d /= 2) {
    value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, d));
  }
  return value;
}

// Eight bf16 values a thread.
__device__ __forceinline__ void load_8(const u16* source, float (&v)[8]) {
  const uint4 raw = *reinterpret_cast<const uint4*>(source);
  const u32 words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    v[2 * i] = bf16_low(words[i]);
    v[2 * i + 1] = bf16_high(words[i]);
  }
}
__device__ __forceinline__ void store_8(u16* target, const float (&v)[8]) {
  *reinterpret_cast<uint4*>(target) = make_uint4(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]),
                                                 pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7]));
}
__device__ __forceinline__ void store_8_e4m3(u8* target, const float (&v)[8], float inverse) {
  u32 words[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const u32 low = pack_e4m3(v[4 * i] * inverse, v[4 * i + 1] * inverse);
    const u32 high = pack_e4m3(v[4 * i + 2] * inverse, v[4 * i + 3] * inverse);
    words[i] = low | high << 16;
  }
  *reinterpret_cast<uint2*>(target) = make_uint2(words[0], words[1]);
}

enum class Input : int { bf16, gate_up, partial };
enum class Quantise : int { none, block, tensor };

template <Input kInput>
__device__ __forceinline__ void read_activated(const ActivateParams& p, int row, int column,
                                               float (&v)[8]) {
  if constexpr (kInput == Input::bf16) {
    load_8(static_cast<const u16*>(p.in) + static_cast<i64>(row) * p.in_pitch + column, v);
  } else {
    float gate[8];
    float up[8];
    if constexpr (kInput == Input::gate_up) {
      const u16* const source =
          static_cast<const u16*>(p.in) + static_cast<i64>(row) * 2 * p.columns + column;
      load_8(source, gate);
      load_8(source + p.columns, up);
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) gate[i] = up[i] = 0.0f;
      for (int s = 0; s < p.splits; ++s) {
        const float* const source = static_cast<const float*>(p.in) +
                                    (static_cast<i64>(s) * p.rows + row) * 2 * p.columns + column;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          gate[i] += source[i];
          up[i] += source[p.columns + i];
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = silu(gate[i]) * up[i];
  }
}

// SwiGLU (for gate_up and partial input) and quantisation (for block and tensor) of rows, which
// may then be packed: copied to the positions of their slots.
// block/none: 16 threads handle 128 columns, blocks are laid over (row, column group) pairs.
// tensor: one thread block a row.
template <Input kInput, Quantise kQuantise>
__device__ __forceinline__ void activate_block(const ActivateParams& p, int block) {
  const int num_threads = blockDim.x;
  const int groups = (p.columns + 127) / 128;
  const auto for_each_copy = [&](int row, auto&& store) {
    if (p.top_k == 0) {
      store(row);
    } else {
      for (int k = 0; k < p.top_k; ++k) {
        const int position = p.positions[row * p.top_k + k];
        if (position >= 0) store(position);
      }
    }
  };
  const auto store_values = [&](int row, int column, const float(&v)[8], float scale) {
    if constexpr (kQuantise == Quantise::none) {
      store_8(static_cast<u16*>(p.out) + static_cast<i64>(row) * p.out_pitch + column, v);
    } else {
      store_8_e4m3(static_cast<u8*>(p.out) + static_cast<i64>(row) * p.out_pitch + column, v,
                   1.0f / scale);
    }
  };
  if constexpr (kQuantise == Quantise::tensor) {
    __shared__ float warp_max[kMaxThreads / 32];
    const int row = block;
    float amax = 0.0f;
    for (int column = threadIdx.x * 8; column < p.columns; column += num_threads * 8) {
      float v[8];
      read_activated<kInput>(p, row, column, v);
#pragma unroll
      for (int i = 0; i < 8; ++i) amax = fmaxf(amax, fabsf(v[i]));
    }
    amax = group_max<32>(amax);
    if (threadIdx.x % 32 == 0) warp_max[threadIdx.x / 32] = amax;
    __syncthreads();
    const int lane = threadIdx.x % 32;
    amax = group_max<32>(lane < num_threads / 32 ? warp_max[lane] : 0.0f);
    const float scale = e4m3_scale(amax);
    if (threadIdx.x == 0) for_each_copy(row, [&](int copy) { p.scale[copy] = scale; });
    for (int column = threadIdx.x * 8; column < p.columns; column += num_threads * 8) {
      float v[8];
      read_activated<kInput>(p, row, column, v);
      for_each_copy(row, [&](int copy) { store_values(copy, column, v, scale); });
    }
  } else {
    const i64 index = static_cast<i64>(block) * (num_threads / 16) + threadIdx.x / 16;
    const int row = static_cast<int>(index / groups);
    const int group = static_cast<int>(index % groups);
    const int column = group * 128 + threadIdx.x % 16 * 8;
    const bool valid = row < p.rows && column < p.columns;
    float v[8] = {};
    if (valid) read_activated<kInput>(p, row, column, v);
    float scale = 1.0f;
    if constexpr (kQuantise == Quantise::block) {
      float amax = 0.0f;
#pragma unroll
      for (int i = 0; i < 8; ++i) amax = fmaxf(amax, fabsf(v[i]));
      scale = e4m3_scale(group_max<16>(amax));
    }
    if (!valid) return;
    for_each_copy(row, [&](int copy) {
      if (kQuantise == Quantise::block && threadIdx.x % 16 == 0) {
        p.scale[p.scale_pitch == 0 ? static_cast<i64>(copy) * groups + group
                                   : static_cast<i64>(group) * p.scale_pitch + copy] = scale;
      }
      store_values(copy, column, v, scale);
    });
  }
}
template <Input kInput, Quantise kQuantise>
__global__ void __launch_bounds__(256) activate(const ActivateParams p) {
  if (p.after_gemm1) let_next_kernel_start();
  wait_for_previous_kernel();
  let_next_kernel_start();
  activate_block<kInput, kQuantise>(p, blockIdx.x);
}

// What a GEMM adds to must be zero before it starts.
__device__ __forceinline__ void clear_block(const SortParams& p, int block) {
  const i64 first = static_cast<i64>(block) * kClearBytes;
  const int bytes = static_cast<int>(min(p.clear_bytes - first, static_cast<i64>(kClearBytes)));
  for (int at = threadIdx.x * 16; at < bytes; at += blockDim.x * 16) {
    *reinterpret_cast<uint4*>(static_cast<u8*>(p.clear) + first + at) = make_uint4(0, 0, 0, 0);
  }
}
__global__ void __launch_bounds__(256) clear(const SortParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  clear_block(p, blockIdx.x);
}

// What becomes of x beside the sorting: nothing, a copy without gaps between rows, or fp8.
enum class Beside : int { nothing, copy, block, tensor };

// What blocks of the first launch do that do not sort.
template <Beside kBeside>
__device__ __forceinline__ void work_beside_sorting(const SortParams& p,
                                                    const ActivateParams& rows) {
  int block = blockIdx.x - p.sorting;
  if constexpr (kBeside != Beside::nothing) {
    constexpr Quantise kQuantise = kBeside == Beside::copy    ? Quantise::none
                                   : kBeside == Beside::block ? Quantise::block
                                                              : Quantise::tensor;
    if (block < p.beside) return activate_block<Input::bf16, kQuantise>(rows, block);
    block -= p.beside;
  }
  clear_block(p, block);
}

__device__ __forceinline__ void clear_tickets(const SortParams& p) {
  if (p.tickets == nullptr || blockIdx.x > 0) return;
  if (threadIdx.x < kNumTickets) p.tickets[threadIdx.x] = 0;
}

// `position` -1: the slot is another GPU's.
__device__ __forceinline__ void place(const SortParams& p, int slot, int position) {
  if (position >= 0) p.sorted_slots[position] = slot;
  p.positions[slot] = position;
  if (p.fp32_weights != nullptr) p.fp32_weights[slot] = weight_of(p.weights, slot);
}

// One block sorts everything, for some thousand slots. One block on a multiprocessor: told nothing,
// ptxas makes room for two and spills.
template <Beside kBeside>
__global__ void __launch_bounds__(kMaxThreads, 1)
    sort_small(const SortParams p, const ActivateParams rows) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  if (static_cast<int>(blockIdx.x) >= p.sorting) return work_beside_sorting<kBeside>(p, rows);
  __shared__ Sorting s;
  const int num_threads = blockDim.x;
  i64 ids[kSmallSortLoads];  // all on their way before one is looked at
  int experts[kSmallSortLoads];
  int places[kSmallSortLoads];  // among the expert's slots
  // The same for all threads: few slots take few rounds.
  const auto for_each_round = [&](auto&& body) {
#pragma unroll
    for (int i = 0; i < kSmallSortLoads; ++i)
      if (i * num_threads < p.num_slots) body(i, static_cast<int>(i * num_threads + threadIdx.x));
  };
  const auto load_ids = [&](const auto* from) {
    for_each_round([&](int i, int slot) { ids[i] = slot < p.num_slots ? from[slot] : -1; });
  };
  if (p.ids.are_int64 != 0) {
    load_ids(static_cast<const i64*>(p.ids.ids));
  } else {
    load_ids(static_cast<const int*>(p.ids.ids));
  }
  for (int e = threadIdx.x; e < p.ids.num_experts; e += num_threads) s.counts[e] = 0;
  clear_tickets(p);
  __syncthreads();
  for_each_round([&](int i, int) {
    experts[i] = local_expert(p.ids, ids[i]);
    if (experts[i] >= 0) places[i] = atomicAdd(&s.counts[experts[i]], 1);
  });
  __syncthreads();
  scan_and_list(p, s, 1);
  for_each_round([&](int i, int slot) {
    if (slot >= p.num_slots) return;
    place(p, slot, experts[i] >= 0 ? s.first_slot(experts[i]) + places[i] : -1);
  });
}

// Two launches for more. Block b counts its share of the slots by expert...
template <Beside kBeside>
__global__ void __launch_bounds__(kMaxThreads)
    sort_count(const SortParams p, const ActivateParams rows) {
  __shared__ int counts[kMaxExperts];
  wait_for_previous_kernel();
  let_next_kernel_start();
  if (static_cast<int>(blockIdx.x) >= p.sorting) return work_beside_sorting<kBeside>(p, rows);
  counts[threadIdx.x] = 0;
  __syncthreads();
  const int end = min(p.num_slots, (static_cast<int>(blockIdx.x) + 1) * p.slots_a_block);
  for (int i = blockIdx.x * p.slots_a_block + threadIdx.x; i < end; i += kMaxThreads) {
    const int expert = expert_of(p.ids, i);
    if (expert >= 0) atomicAdd(&counts[expert], 1);
  }
  __syncthreads();
  if (threadIdx.x < p.ids.num_experts) {
    p.counts[blockIdx.x * p.ids.num_experts + threadIdx.x] = counts[threadIdx.x];
  }
}

// ...and places them behind those of the blocks before it, knowing everybody's counts.
__global__ void __launch_bounds__(kMaxThreads) sort_place(const SortParams p) {
  __shared__ Sorting s;
  wait_for_previous_kernel();
  let_next_kernel_start();
  clear_tickets(p);
  const int e = threadIdx.x;
  int before = 0;
  int total = 0;
  if (e < p.ids.num_experts) {
#pragma unroll 8
    for (int b = 0; b < static_cast<int>(gridDim.x); ++b) {
      const int count = p.counts[b * p.ids.num_experts + e];
      total += count;
      if (b < static_cast<int>(blockIdx.x)) before += count;
    }
  }
  s.counts[e] = total;
  __syncthreads();
  scan_and_list(p, s, gridDim.x);
  if (e < p.ids.num_experts) s.counts[e] = s.first_slot(e) + before;
  __syncthreads();
  const int end = min(p.num_slots, (static_cast<int>(blockIdx.x) + 1) * p.slots_a_block);
  for (int i = blockIdx.x * p.slots_a_block + e; i < end; i += kMaxThreads) {
    const int expert = expert_of(p.ids, i);
    place(p, i, expert >= 0 ? atomicAdd(&s.counts[expert], 1) : -1);
  }
}

// out[t] = sum_k weight[t, k] * y[positions[t * top_k + k]], summed in order of k and of splits.
// Positions and weights were written before the kernel that wrote y started, so they are read
// before the wait.
template <int kTopK>
__global__ void __launch_bounds__(256) combine(const CombineParams p) {
  const int per_row = p.columns / 8;
  const i64 index = static_cast<i64>(blockIdx.x) * 256 + threadIdx.x;
  const int token = static_cast<int>(index / per_row);
  const int column = static_cast<int>(index % per_row) * 8;
  int rows[kTopK];
  float weights[kTopK];
  if (token < p.num_tokens) {
#pragma unroll
    for (int k = 0; k < kTopK; ++k) {
      rows[k] = load_past_l1(p.positions + static_cast<i64>(token) * kTopK + k);
      weights[k] = load_past_l1(p.topk_weights + static_cast<i64>(token) * kTopK + k);
    }
  }
  wait_for_previous_kernel();
  let_next_kernel_start();
  if (token >= p.num_tokens) return;
  float sum[8] = {};
  const i64 slots = static_cast<i64>(p.num_tokens) * kTopK;
#pragma unroll
  for (int k = 0; k < kTopK; ++k) {
    const i64 row = rows[k];
    float v[8] = {};
    if (row < 0) {
      weights[k] = 0.0f;
    } else if (p.splits == 0) {
      load_8(static_cast<const u16*>(p.y) + row * p.columns + column, v);
    } else {
      for (int s = 0; s < p.splits; ++s) {
        const float4* const source = reinterpret_cast<const float4*>(
            static_cast<const float*>(p.y) + (s * slots + row) * p.columns + column);
        const float4 a = source[0];
        const float4 b = source[1];
        v[0] += a.x, v[1] += a.y, v[2] += a.z, v[3] += a.w;
        v[4] += b.x, v[5] += b.y, v[6] += b.z, v[7] += b.w;
      }
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) sum[i] += weights[k] * v[i];
  }
  store_8(static_cast<u16*>(p.out) + static_cast<i64>(token) * p.out_pitch + column, sum);
}

}  // namespace moetune
