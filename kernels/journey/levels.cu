// The kernels of the optimisation journey's levels 0 to 5: plain CUDA without tensor cores, and
// what surrounds cuBLAS. They are there to be compared with; no search and no table uses them.
//
// A slot is token * top_k + choice. Weights are row-major bf16: w13 [experts, 2I, H] (gate rows
// first), w2 [experts, H, I]. H and I are multiples of 8, all rows are aligned to 16 bytes.
#include "common/ptx.cuh"

namespace moetune_journey {

using namespace moetune;

constexpr int kWarps = 8;  // of a block of the matrix-vector kernels: a warp an output
constexpr int kThreads = 32 * kWarps;
constexpr int kSortThreads = 1024;
constexpr int kMaxExperts = 1024;

__device__ __forceinline__ float from_bf16(u16 bits) {
  return __uint_as_float(static_cast<u32>(bits) << 16);
}
// Nearest even; the inputs are finite.
__device__ __forceinline__ u16 to_bf16(float value) {
  const u32 raw = __float_as_uint(value);
  return static_cast<u16>((raw + 0x7fffu + (raw >> 16 & 1)) >> 16);
}
__device__ __forceinline__ float swiglu_of(float gate, float up) {
  return gate / (1.0f + __expf(-gate)) * up;
}

// The warp's dot product of two rows of `k` bf16; every lane gets it.
__device__ __forceinline__ float dot(const u16* a, const u16* b, int k) {
  float sum = 0.0f;
  for (int i = threadIdx.x % 32 * 8; i < k; i += 32 * 8) {
    const uint4 va = *reinterpret_cast<const uint4*>(a + i);
    const uint4 vb = *reinterpret_cast<const uint4*>(b + i);
    sum += bf16_low(va.x) * bf16_low(vb.x) + bf16_high(va.x) * bf16_high(vb.x);
    sum += bf16_low(va.y) * bf16_low(vb.y) + bf16_high(va.y) * bf16_high(vb.y);
    sum += bf16_low(va.z) * bf16_low(vb.z) + bf16_high(va.z) * bf16_high(vb.z);
    sum += bf16_low(va.w) * bf16_low(vb.w) + bf16_high(va.w) * bf16_high(vb.w);
  }
#pragma unroll
  for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
  return sum;
}

// Which rows a matrix-vector kernel multiplies for blockIdx.x = i: slot first_slot + i with row
// slot / top_k of x and the weights of `experts[slot]`, or, without `experts`, the i-th gathered.
struct MatvecParams {
  const u16* x;        // [rows, k]
  const u16* w;        // [experts or gathered, num_rows (twice that for SwiGLU), k]
  const int* experts;  // [num_slots], or null
  u16* out;            // [num_slots, num_rows]
  int first_slot;
  int top_k;     // 1 where x has a row a slot
  int num_rows;  // outputs a slot
  int k;
};

// out[slot, r] = w[r] . x. Grid: slots, num_rows / kWarps.
__global__ void __launch_bounds__(kThreads) matvec(const MatvecParams p) {
  const int row = blockIdx.y * kWarps + threadIdx.x / 32;
  if (row >= p.num_rows) return;
  const i64 slot = p.first_slot + static_cast<i64>(blockIdx.x);
  const i64 expert = p.experts != nullptr ? p.experts[slot] : static_cast<i64>(blockIdx.x);
  const float sum = dot(p.w + (expert * p.num_rows + row) * p.k, p.x + slot / p.top_k * p.k, p.k);
  if (threadIdx.x % 32 == 0) p.out[slot * p.num_rows + row] = to_bf16(sum);
}

// The same with SwiGLU in the epilogue: gate and up stay in registers.
__global__ void __launch_bounds__(kThreads) matvec_swiglu(const MatvecParams p) {
  const int row = blockIdx.y * kWarps + threadIdx.x / 32;
  if (row >= p.num_rows) return;
  const i64 slot = p.first_slot + static_cast<i64>(blockIdx.x);
  const i64 expert = p.experts != nullptr ? p.experts[slot] : static_cast<i64>(blockIdx.x);
  const u16* const x = p.x + slot / p.top_k * p.k;
  const u16* const gate_row = p.w + (expert * 2 * p.num_rows + row) * p.k;
  const float gate = dot(gate_row, x, p.k);
  const float up = dot(gate_row + static_cast<i64>(p.num_rows) * p.k, x, p.k);
  if (threadIdx.x % 32 == 0) p.out[slot * p.num_rows + row] = to_bf16(swiglu_of(gate, up));
}

// out[token, r] = the weighted sum over the token's choices of w[expert, r] . x[slot]: no row a
// slot is ever stored. Grid: tokens, num_rows / kWarps.
__global__ void __launch_bounds__(kThreads)
    matvec_combine(const MatvecParams p, const float* topk_weights) {
  const int row = blockIdx.y * kWarps + threadIdx.x / 32;
  if (row >= p.num_rows) return;
  const i64 token = blockIdx.x;
  float sum = 0.0f;
  for (int choice = 0; choice < p.top_k; ++choice) {
    const i64 slot = token * p.top_k + choice;
    const i64 expert = p.experts[slot];
    sum += topk_weights[slot] * dot(p.w + (expert * p.num_rows + row) * p.k, p.x + slot * p.k, p.k);
  }
  if (threadIdx.x % 32 == 0) p.out[token * p.num_rows + row] = to_bf16(sum);
}

// out[i] = the whole weight matrix of slot first_slot + i's expert. Grid: parts, slots.
__global__ void __launch_bounds__(kThreads)
    gather_weights(const u16* w, const int* experts, int first_slot, i64 elements, u16* out) {
  const i64 expert = experts[first_slot + blockIdx.y];
  const uint4* const source = reinterpret_cast<const uint4*>(w + expert * elements);
  uint4* const target = reinterpret_cast<uint4*>(out + static_cast<i64>(blockIdx.y) * elements);
  const i64 stride = static_cast<i64>(gridDim.x) * kThreads;
  for (i64 i = static_cast<i64>(blockIdx.x) * kThreads + threadIdx.x; i < elements / 8; i += stride)
    target[i] = source[i];
}

// out[row, c] = SwiGLU of gate_up[row, 2 columns]. A thread an element of `count`.
__global__ void __launch_bounds__(kThreads)
    swiglu(const u16* gate_up, int columns, i64 count, u16* out) {
  const i64 i = static_cast<i64>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) return;
  const u16* const gate = gate_up + i / columns * 2 * columns + i % columns;
  out[i] = to_bf16(swiglu_of(from_bf16(gate[0]), from_bf16(gate[columns])));
}

// out[token] = the weighted sum of the token's rows of y, which lie at positions[slot], or at slot
// without `positions`. A thread an element of `count`.
__global__ void __launch_bounds__(kThreads)
    combine(const u16* y, const int* positions, const float* topk_weights, int top_k, int columns,
            i64 count, u16* out) {
  const i64 i = static_cast<i64>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) return;
  const i64 token = i / columns;
  float sum = 0.0f;
  for (i64 slot = token * top_k; slot < (token + 1) * top_k; ++slot) {
    const i64 row = positions != nullptr ? positions[slot] : slot;
    sum += topk_weights[slot] * from_bf16(y[row * columns + i % columns]);
  }
  out[i] = to_bf16(sum);
}

// Groups slots by expert: positions[slot] is the slot's place, first_row[e] where expert e begins
// (padded to multiples of `padding` rows), [num_experts + 1]. One block.
__global__ void __launch_bounds__(kSortThreads)
    sort_slots(const int* experts, int num_slots, int num_experts, int padding, int* first_row,
               int* positions) {
  __shared__ int counts[kMaxExperts];
  __shared__ int next[kMaxExperts];
  const int thread = threadIdx.x;
  counts[thread] = 0;
  __syncthreads();
  for (int slot = thread; slot < num_slots; slot += kSortThreads)
    atomicAdd(&counts[experts[slot]], 1);
  __syncthreads();
  if (thread == 0) {
    int row = 0;
    for (int e = 0; e < num_experts; ++e) {
      first_row[e] = next[e] = row;
      row += (counts[e] + padding - 1) / padding * padding;
    }
    first_row[num_experts] = row;
  }
  __syncthreads();
  for (int slot = thread; slot < num_slots; slot += kSortThreads)
    positions[slot] = atomicAdd(&next[experts[slot]], 1);
}

// out[positions[slot]] = x[slot / top_k], rows of `columns`. A block a slot.
__global__ void __launch_bounds__(kThreads)
    gather_rows(const u16* x, const int* positions, int top_k, int columns, u16* out) {
  const i64 slot = blockIdx.x;
  const uint4* const source = reinterpret_cast<const uint4*>(x + slot / top_k * columns);
  uint4* const target = reinterpret_cast<uint4*>(out + static_cast<i64>(positions[slot]) * columns);
  for (int i = threadIdx.x; i < columns / 8; i += kThreads) target[i] = source[i];
}

}  // namespace moetune_journey
