// The weighted sum over a token's experts, for its own kernel and for GEMM2's.
#pragma once

#include "common/params.hpp"
#include "common/ptx.cuh"

namespace moetune {

// Eight bf16 values a thread.
template <typename Word>
__device__ __forceinline__ void unpack_8(const Word (&words)[4], float (&v)[8]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    v[2 * i] = bf16_low(words[i]);
    v[2 * i + 1] = bf16_high(words[i]);
  }
}
__device__ __forceinline__ void load_8(const u16* source, float (&v)[8]) {
  const uint4 raw = *reinterpret_cast<const uint4*>(source);
  const u32 words[4] = {raw.x, raw.y, raw.z, raw.w};
  unpack_8(words, v);
}
__device__ __forceinline__ void store_8(u16* target, const float (&v)[8]) {
  *reinterpret_cast<uint4*>(target) = make_uint4(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]),
                                                 pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7]));
}

// Eight columns of out[token] from bf16 y, summed in order of k. kTopK: top_k, or 0 where only
// `p` knows. All rows are asked for before the first is used.
template <int kTopK>
__device__ __forceinline__ void combine_8(const CombineParams& p, int token, int column) {
  constexpr int kAtOnce = kTopK > 0 && kTopK < 8 ? kTopK : 8;
  const int top_k = kTopK > 0 ? kTopK : p.top_k;
  const i64 slot0 = static_cast<i64>(token) * top_k;
  float sum[8] = {};
  for (int k0 = 0; k0 < top_k; k0 += kAtOnce) {
    int4 raw[kAtOnce];
    float weight[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (k0 + i >= top_k) break;
      const i64 row = __ldg(p.positions + slot0 + k0 + i);
      weight[i] = __ldg(p.topk_weights + slot0 + k0 + i);
      raw[i] = load_past_l1(
          reinterpret_cast<const int4*>(static_cast<const u16*>(p.y) + row * p.columns + column));
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (k0 + i >= top_k) break;
      const int words[4] = {raw[i].x, raw[i].y, raw[i].z, raw[i].w};
      float v[8];
      unpack_8(words, v);
#pragma unroll
      for (int j = 0; j < 8; ++j) sum[j] += weight[i] * v[j];
    }
  }
  store_8(static_cast<u16*>(p.out) + static_cast<i64>(token) * p.columns + column, sum);
}

}  // namespace moetune
