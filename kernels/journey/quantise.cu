// Quantisation of weights during a call: what weights kept in bf16 cost a layer that multiplies in
// fp8. For comparison only; no search and no table uses it. sm_89 and later.
#include "common/ptx.cuh"

namespace moetune_journey {

using namespace moetune;

constexpr int kBlock = 128;  // rows and columns that share a scale
constexpr int kThreads = 256;
constexpr int kVectors = kBlock * kBlock / 8 / kThreads;  // of 8 values, a thread
constexpr float kE4m3Max = 448.0f;

// out, scales = e4m3 values and amax / 448 (1 for zeros) of each 128x128 block of `in`, row-major
// bf16 [rows, columns], both multiples of 128. A thread block a block: grid rows / 128 * columns /
// 128.
__global__ void __launch_bounds__(kThreads)
    quantise_blocks(const u16* in, int columns, void* out, float* scales) {
  __shared__ float maxima[kThreads / 32];
  const int blocks_a_row = columns / kBlock;
  const i64 first = static_cast<i64>(blockIdx.x / blocks_a_row) * kBlock * columns +
                    blockIdx.x % blocks_a_row * kBlock;
  const int row = threadIdx.x / 16;  // and every 16th after it
  const i64 at = first + static_cast<i64>(row) * columns + threadIdx.x % 16 * 8;
  const i64 stride = static_cast<i64>(kThreads / 16) * columns;
  uint4 v[kVectors];
  float amax = 0.0f;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    v[i] = *reinterpret_cast<const uint4*>(in + at + i * stride);
    amax = fmaxf(amax, fmaxf(fmaxf(fabsf(bf16_low(v[i].x)), fabsf(bf16_high(v[i].x))),
                             fmaxf(fabsf(bf16_low(v[i].y)), fabsf(bf16_high(v[i].y)))));
    amax = fmaxf(amax, fmaxf(fmaxf(fabsf(bf16_low(v[i].z)), fabsf(bf16_high(v[i].z))),
                             fmaxf(fabsf(bf16_low(v[i].w)), fabsf(bf16_high(v[i].w)))));
  }
#pragma unroll
  for (int d = 16; d > 0; d /= 2) amax = fmaxf(amax, __shfl_xor_sync(0xffffffffu, amax, d));
  if (threadIdx.x % 32 == 0) maxima[threadIdx.x / 32] = amax;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kThreads / 32; ++i) amax = fmaxf(amax, maxima[i]);
  const float scale = amax > 0.0f ? amax / kE4m3Max : 1.0f;
  if (threadIdx.x == 0) scales[blockIdx.x] = scale;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    uint2 packed;
    packed.x = pack_e4m3(bf16_low(v[i].x) / scale, bf16_high(v[i].x) / scale) |
               pack_e4m3(bf16_low(v[i].y) / scale, bf16_high(v[i].y) / scale) << 16;
    packed.y = pack_e4m3(bf16_low(v[i].z) / scale, bf16_high(v[i].z) / scale) |
               pack_e4m3(bf16_low(v[i].w) / scale, bf16_high(v[i].w) / scale) << 16;
    *reinterpret_cast<uint2*>(static_cast<unsigned char*>(out) + at + i * stride) = packed;
  }
}

}  // namespace moetune_journey
