// MXFP8: e4m3 values with a shared power-of-two scale (e8m0) for every 32 of them, along rows.
// Source: OCP Microscaling Formats (MX) Specification 1.0. Scales are rounded up where the
// specification's recipe rounds down, so that no value is clipped. sm_89 and later.
#include "common/ptx.cuh"
#include "journey/mxfp8_config.hpp"

namespace moetune_journey {

using namespace moetune;

constexpr int kThreads = 256;
constexpr int kLanes = 4;   // threads that share a block of 32 values, 8 each
constexpr int kUnroll = 4;  // loads in flight a thread

// The exponent byte of the least power of two that `amax`, the bits of a bf16 of no sign, exceeds
// at most 448-fold. 448 is 1.75 * 2^8, and 1.75 has the mantissa 0x60.
__device__ __forceinline__ int scale_byte(u32 amax) {
  return max(0, static_cast<int>(amax >> 7) - 8 + ((amax & 0x7f) > 0x60 ? 1 : 0));
}

// Scale number `block` of all rows' goes to its row; the row's last one is followed by the zeros
// that pad it.
template <int kRow>
__device__ __forceinline__ void store_scale(u8* scales, i64 block, u8 byte) {
  constexpr int kBlocks = kRow / kMxBlockK;
  constexpr int kPitch = mx_scale_pitch(kRow);
  if constexpr (kBlocks == kPitch) {
    scales[block] = byte;
  } else {
    const i64 row = block / kBlocks;
    const int column = static_cast<int>(block - row * kBlocks);
    u8* const target = scales + row * kPitch + column;
    *target = byte;
    if (column < kBlocks - 1) return;
    for (int i = 1; i <= kPitch - kBlocks; ++i) target[i] = 0;
  }
}

// out [count] e4m3 and scales [rows, mx_scale_pitch(kRow)] e8m0 of `in` [count] bf16, finite: rows
// of kRow, a multiple of 32. Grid: count / (8 kUnroll kThreads), rounded up.
template <int kRow>
__global__ void __launch_bounds__(kThreads)
    quantise_mxfp8(const u16* in, i64 count, u8* out, u8* scales) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const i64 first = (static_cast<i64>(blockIdx.x) * kUnroll * kThreads + threadIdx.x) * 8;
  uint4 v[kUnroll];
#pragma unroll
  for (int i = 0; i < kUnroll; ++i) {
    const i64 at = first + static_cast<i64>(i) * kThreads * 8;
    v[i] = at < count ? *reinterpret_cast<const uint4*>(in + at) : make_uint4(0, 0, 0, 0);
  }
#pragma unroll
  for (int i = 0; i < kUnroll; ++i) {
    constexpr u32 kNoSigns = 0x7fff7fffu;  // bf16 without signs are ordered like their bits
    const u32 pairs = __vmaxu2(__vmaxu2(v[i].x & kNoSigns, v[i].y & kNoSigns),
                               __vmaxu2(v[i].z & kNoSigns, v[i].w & kNoSigns));
    u32 amax = max(pairs & 0xffffu, pairs >> 16);
#pragma unroll
    for (int d = kLanes / 2; d > 0; d /= 2) amax = max(amax, __shfl_xor_sync(0xffffffffu, amax, d));
    const i64 at = first + static_cast<i64>(i) * kThreads * 8;
    if (at >= count) continue;  // all lanes of a block of 32 alike; the shuffle is behind
    const int byte = scale_byte(amax);
    const float inverse = __uint_as_float(static_cast<u32>(254 - byte) << 23);
    if (threadIdx.x % kLanes == 0) store_scale<kRow>(scales, at / kMxBlockK, static_cast<u8>(byte));
    const uint2 packed =
        make_uint2(pack_e4m3(bf16_low(v[i].x) * inverse, bf16_high(v[i].x) * inverse) |
                       pack_e4m3(bf16_low(v[i].y) * inverse, bf16_high(v[i].y) * inverse) << 16,
                   pack_e4m3(bf16_low(v[i].z) * inverse, bf16_high(v[i].z) * inverse) |
                       pack_e4m3(bf16_low(v[i].w) * inverse, bf16_high(v[i].w) * inverse) << 16);
    *reinterpret_cast<uint2*>(out + at) = packed;
  }
}

}  // namespace moetune_journey
