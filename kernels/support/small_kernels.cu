// The kernels around the grouped GEMMs: sort slots by expert, quantise rows, SwiGLU, weighted sum.
//
// Sorting groups slots by expert without padding and lists, for up to two tile heights at once
// (GEMM1's and GEMM2's), the row tiles.
#include "common/params.hpp"
#include "common/ptx.cuh"

namespace moetune {

constexpr int kSortThreads = 1024;
constexpr int kMaxExperts = 1024;

// Inclusive prefix sum over the block's kSortThreads values.
__device__ __forceinline__ int block_scan(int value, int* warp_sums) {
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const int other = __shfl_up_sync(0xffffffffu, value, d);
    if (lane >= d) value += other;
  }
  if (lane == 31) warp_sums[warp] = value;
  __syncthreads();
  if (warp == 0) {
    int sum = warp_sums[lane];
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
      const int other = __shfl_up_sync(0xffffffffu, sum, d);
      if (lane >= d) sum += other;
    }
    warp_sums[lane] = sum;
  }
  __syncthreads();
  const int result = value + (warp > 0 ? warp_sums[warp - 1] : 0);
  __syncthreads();
  return result;
}

// From counts in shared memory: offsets, and both tile lists, which the grid's blocks share. Every
// block gets all `offsets`, num_experts + 1 values.
__device__ __forceinline__ void scan_and_list(const SortParams& p, const int* counts, int* offsets,
                                              int* first_tile, int* warp_sums) {
  const int e = threadIdx.x;
  const int count = e < p.num_experts ? counts[e] : 0;
  const int end = block_scan(count, warp_sums);
  if (e == 0) offsets[0] = 0;
  if (e < p.num_experts) offsets[e + 1] = end;
  __syncthreads();
#pragma unroll
  for (int which = 0; which < 2; ++which) {
    const int block_m = p.block_m[which];
    if (block_m == 0) continue;
    const int last = block_scan((count + block_m - 1) / block_m, warp_sums);
    if (e == 0) first_tile[0] = 0;
    if (e < p.num_experts) first_tile[e + 1] = last;
    __syncthreads();
    const int total = first_tile[p.num_experts];
    if (e == 0 && blockIdx.x == 0) *p.num_tiles[which] = total;
    const int stride = gridDim.x * kSortThreads;
    for (int tile = blockIdx.x * kSortThreads + e; tile < total; tile += stride) {
      int low = 0;  // the expert with first_tile[expert] <= tile < first_tile[expert + 1]
      int high = p.num_experts;
      while (high - low > 1) {
        const int middle = (low + high) / 2;
        if (first_tile[middle] <= tile) {
          low = middle;
        } else {
          high = middle;
        }
      }
      const int first = offsets[low] + (tile - first_tile[low]) * block_m;
      *reinterpret_cast<int4*>(&p.tiles[which][tile]) =
          make_int4(low, first, min(block_m, offsets[low + 1] - first), 0);
    }
    __syncthreads();
  }
}

// One block: everything in one launch. For some thousand slots.
__global__ void __launch_bounds__(kSortThreads) sort_small(const SortParams p) {
  __shared__ int counts[kMaxExperts];
  __shared__ int offsets[kMaxExperts + 1];
  __shared__ int first_tile[kMaxExperts + 1];
  __shared__ int warp_sums[32];
  wait_for_previous_kernel();
  let_next_kernel_start();
  counts[threadIdx.x] = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < p.num_slots; i += kSortThreads) {
    atomicAdd(&counts[p.topk_ids[i]], 1);
  }
  __syncthreads();
  scan_and_list(p, counts, offsets, first_tile, warp_sums);
  counts[threadIdx.x] = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < p.num_slots; i += kSortThreads) {
    const int expert = p.topk_ids[i];
    const int position = offsets[expert] + atomicAdd(&counts[expert], 1);
    p.sorted_slots[position] = i;
    p.positions[i] = position;
  }
}

// Two launches for more. Block b counts its share of the slots by expert...
__global__ void __launch_bounds__(kSortThreads) sort_count(const SortParams p) {
  __shared__ int counts[kMaxExperts];
  wait_for_previous_kernel();
  let_next_kernel_start();
  counts[threadIdx.x] = 0;
  __syncthreads();
  const int end = min(p.num_slots, (static_cast<int>(blockIdx.x) + 1) * p.slots_a_block);
  for (int i = blockIdx.x * p.slots_a_block + threadIdx.x; i < end; i += kSortThreads) {
    atomicAdd(&counts[p.topk_ids[i]], 1);
  }
  __syncthreads();
  if (threadIdx.x < p.num_experts) {
    p.counts[blockIdx.x * p.num_experts + threadIdx.x] = counts[threadIdx.x];
  }
}

// ...and places them behind those of the blocks before it, knowing everybody's counts.
__global__ void __launch_bounds__(kSortThreads) sort_place(const SortParams p) {
  __shared__ int counts[kMaxExperts];
  __shared__ int offsets[kMaxExperts + 1];
  __shared__ int first_tile[kMaxExperts + 1];
  __shared__ int warp_sums[32];
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int e = threadIdx.x;
  int before = 0;
  int total = 0;
  if (e < p.num_experts) {
#pragma unroll 8
    for (int b = 0; b < static_cast<int>(gridDim.x); ++b) {
      const int count = p.counts[b * p.num_experts + e];
      total += count;
      if (b < static_cast<int>(blockIdx.x)) before += count;
    }
  }
  counts[e] = total;
  __syncthreads();
  scan_and_list(p, counts, offsets, first_tile, warp_sums);
  if (e < p.num_experts) counts[e] = offsets[e] + before;
  __syncthreads();
  const int end = min(p.num_slots, (static_cast<int>(blockIdx.x) + 1) * p.slots_a_block);
  for (int i = blockIdx.x * p.slots_a_block + e; i < end; i += kSortThreads) {
    const int position = atomicAdd(&counts[p.topk_ids[i]], 1);
    p.sorted_slots[position] = i;
    p.positions[i] = position;
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

// Eight values a thread, as the two kernels below read and write them.
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
    load_8(static_cast<const u16*>(p.in) + static_cast<i64>(row) * p.columns + column, v);
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

// SwiGLU (for gate_up and partial input) and quantisation (for block and tensor) of rows.
// block/none: 16 threads handle 128 columns, blocks are laid over (row, column group) pairs.
// tensor: one thread block a row.
template <Input kInput, Quantise kQuantise>
__global__ void __launch_bounds__(256) activate(const ActivateParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  if constexpr (kQuantise == Quantise::tensor) {
    __shared__ float warp_max[8];
    const int row = blockIdx.x;
    float amax = 0.0f;
    for (int column = threadIdx.x * 8; column < p.columns; column += 256 * 8) {
      float v[8];
      read_activated<kInput>(p, row, column, v);
#pragma unroll
      for (int i = 0; i < 8; ++i) amax = fmaxf(amax, fabsf(v[i]));
    }
    amax = group_max<32>(amax);
    if (threadIdx.x % 32 == 0) warp_max[threadIdx.x / 32] = amax;
    __syncthreads();
    amax = group_max<8>(warp_max[threadIdx.x % 8]);
    const float scale = e4m3_scale(amax);
    if (threadIdx.x == 0) p.scale[row] = scale;
    for (int column = threadIdx.x * 8; column < p.columns; column += 256 * 8) {
      float v[8];
      read_activated<kInput>(p, row, column, v);
      store_8_e4m3(static_cast<u8*>(p.out) + static_cast<i64>(row) * p.columns + column, v,
                   1.0f / scale);
    }
  } else {
    const int groups = (p.columns + 127) / 128;
    const i64 index = static_cast<i64>(blockIdx.x) * 16 + threadIdx.x / 16;
    const int row = static_cast<int>(index / groups);
    const int group = static_cast<int>(index % groups);
    const int column = group * 128 + threadIdx.x % 16 * 8;
    const bool valid = row < p.rows && column < p.columns;
    float v[8] = {};
    if (valid) read_activated<kInput>(p, row, column, v);
    if constexpr (kQuantise == Quantise::block) {
      float amax = 0.0f;
#pragma unroll
      for (int i = 0; i < 8; ++i) amax = fmaxf(amax, fabsf(v[i]));
      const float scale = e4m3_scale(group_max<16>(amax));
      if (!valid) return;
      if (threadIdx.x % 16 == 0) p.scale[static_cast<i64>(row) * groups + group] = scale;
      store_8_e4m3(static_cast<u8*>(p.out) + static_cast<i64>(row) * p.columns + column, v,
                   1.0f / scale);
    } else if (valid) {
      store_8(static_cast<u16*>(p.out) + static_cast<i64>(row) * p.columns + column, v);
    }
  }
}

// out[t] = sum_k weight[t, k] * y[positions[t * top_k + k]], summed in order of k and of splits.
__global__ void __launch_bounds__(256) combine(const CombineParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int per_row = p.columns / 8;
  const i64 index = static_cast<i64>(blockIdx.x) * 256 + threadIdx.x;
  const int token = static_cast<int>(index / per_row);
  const int column = static_cast<int>(index % per_row) * 8;
  if (token >= p.num_tokens) return;
  float sum[8] = {};
  const i64 slots = static_cast<i64>(p.num_tokens) * p.top_k;
#pragma unroll 4
  for (int k = 0; k < p.top_k; ++k) {
    const i64 slot = static_cast<i64>(token) * p.top_k + k;
    const float weight = p.topk_weights[slot];
    const i64 row = p.positions[slot];
    float v[8] = {};
    if (p.splits == 0) {
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
    for (int i = 0; i < 8; ++i) sum[i] += weight * v[i];
  }
  store_8(static_cast<u16*>(p.out) + static_cast<i64>(token) * p.columns + column, sum);
}

}  // namespace moetune
