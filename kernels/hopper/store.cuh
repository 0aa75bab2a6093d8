// What a warpgroup of the Hopper grouped GEMM holds of a tile, and how that goes to memory.
#pragma once

#include "common/params.hpp"
#include "common/sm90.cuh"
#include "hopper/config.hpp"

namespace moetune {

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

// The largest of the four threads that hold a row.
__device__ __forceinline__ float row_max(float value) {
  value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 1));
  return fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 2));
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

// Quantises the 64 rows of a wave and stores them.
template <HopperConfig C>
__device__ __forceinline__ void store_quantised(Sums<C>& sums, const GemmParams& p,
                                                const int (&target)[2], int column) {
  constexpr int kColumns = kScaleGroup;
  static_assert(tile_columns(C) == kColumns && warpgroups_n(C) == 1,
                "a warpgroup quantises one scale group a row");
  const int lane4 = threadIdx.x % 4;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = target[h];
    float largest = 0;
#pragma unroll
    for (int i = h * 2; i < kColumns / 2; i += 4) {
      largest = fmaxf(largest, fmaxf(fabsf(sums.at(i)), fabsf(sums.at(i + 1))));
    }
    const float amax = row_max(largest);
    const float scale = amax > 0.0f ? amax / 448.0f : 1.0f;
    const float inverse = 1.0f / scale;
    if (lane4 == 0 && row >= 0) {
      p.out_scale[static_cast<i64>(column / kScaleGroup) * p.scale_pitch + row] = scale;
    }
    u8* const out = static_cast<u8*>(p.out) + static_cast<i64>(row) * out_columns(C) + column;
#pragma unroll
    for (int j = 0; j < kColumns; j += 64) {
      u32 words[4];
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const int i = (j + w * 16) / 2 + h * 2;
        words[w] = pack_e4m3(sums.at(i) * inverse, sums.at(i + 1) * inverse) |
                   pack_e4m3(sums.at(i + 4) * inverse, sums.at(i + 5) * inverse) << 16;
      }
      transpose_of_four(words);
      if (row >= 0) {  // low halves are columns 0 to 7 of 16, high ones 8 to 15
        *reinterpret_cast<uint4*>(out + j + lane4 * 16) = make_uint4(
            __byte_perm(words[0], words[1], 0x5410), __byte_perm(words[2], words[3], 0x5410),
            __byte_perm(words[0], words[1], 0x7632), __byte_perm(words[2], words[3], 0x7632));
      }
    }
  }
}

// Stores the 64 rows of a wave from registers.
template <HopperConfig C>
__device__ __forceinline__ void store_directly(Sums<C>& sums, const GemmParams& p,
                                               const int (&target)[2], int column) {
  constexpr int kColumns = tile_columns(C) / warpgroups_n(C);
  constexpr bool kEven = out_columns(C) % tile_columns(C) == 0;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = target[h];
    u8* const out = static_cast<u8*>(p.out) + static_cast<i64>(row) * (out_columns(C) * 2);
#pragma unroll
    for (int j = 0; j < kColumns; j += 32) {
      u32 words[4];
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const int i = (j + w * 8) / 2 + h * 2;
        words[w] = pack_bf16(sums.at(i), sums.at(i + 1));
      }
      transpose_of_four(words);
      const int at = column + j + threadIdx.x % 4 * 8;
      if (row < 0 || !(kEven || at < out_columns(C))) continue;
      const uint4 value = make_uint4(words[0], words[1], words[2], words[3]);
      if constexpr (C.output == Output::weighted_sum) {
        add_eight_bf16(out + at * 2, value);
      } else {
        *reinterpret_cast<uint4*>(out + at * 2) = value;
      }
    }
  }
}

// Ends the 64 rows of a wave: factors, SwiGLU, and to memory.
template <HopperConfig C>
__device__ __forceinline__ void store_wave(Sums<C>& sums, const GemmParams& p, const Rows<C>& rows,
                                           int wave, int column) {
  constexpr int kHalf = Sums<C>::kCount / 2;  // where the up columns begin
  if constexpr (Rows<C>::kScales) {
#pragma unroll
    for (int i = 0; i < Sums<C>::kCount; ++i) sums.at(i) *= rows.factor[wave][i / 2 % 2];
  }
  if constexpr (is_fused(C)) {
#pragma unroll
    for (int i = 0; i < kHalf; ++i) sums.at(i) = silu(sums.at(i)) * sums.at(kHalf + i);
  }
  if constexpr (C.output == Output::swiglu_fp8) {
    store_quantised<C>(sums, p, rows.target[wave], column);
  } else {
    store_directly<C>(sums, p, rows.target[wave], column);
  }
}

}  // namespace moetune
