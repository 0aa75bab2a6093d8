// Grouped GEMM of MXFP8 operands: out[p, n] = sum_k a[row(p), k] w[e, n, k], each 32 of K times the
// two power-of-two scales of its rows. sm_89 and later. How a warp multiplies 32 of K:
//   sm_120  an mma with block scales: the matrix unit applies them
//   others  an mma of e4m3 into a temporary, which fp32 multiplications by both scales (exact, but
//           for the byte 0, 2^-127, taken as 0) add to the sums
#include "journey/mxfp8_tile.cuh"

namespace moetune_journey {

#if __CUDA_ARCH__ >= 1200
constexpr bool kNative = true;
#else
constexpr bool kNative = false;
#endif

// D[16,8] += (2^sa A[16,32]) (2^sb B[32,8]). Byte kByte of lane 4r's word `a_scales` scales row r
// of A, of lane 4r + 1's row r + 8; of lane 4c's word `b_scales`, column c of B.
template <int kByte>
__device__ __forceinline__ void mma_mxfp8(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2],
                                          u32 a_scales, u32 b_scales) {
#if __CUDA_ARCH__ >= 1200
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.kind::mxf8f6f4.block_scale.scale_vec::1X.f32.e4m3.e4m3."
      "f32.ue8m0 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3}, {%10}, {%12,%13}, {%11}, "
      "{%12,%13};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(a_scales),
        "r"(b_scales), "n"(kByte), "n"(0));
#endif
}

// The power of two that byte `byte` of a word of scales stands for: an fp32's exponent.
__device__ __forceinline__ float scale_of(u32 word, int byte) {
  return __uint_as_float(__byte_perm(word, 0, 0x444 | byte << 12) >> 1);
}

template <Mxfp8Config C>
__global__ void __launch_bounds__(num_threads(C)) mxfp8_gemm(const Mxfp8Params params) {
  using Tile = Mxfp8Tile<C>;
  constexpr bool kFused = Tile::kFused;
  constexpr int kOutColumns = Tile::kOutColumns;
  constexpr int kNumSteps = Tile::kNumSteps;
  constexpr int kWords = Tile::kWords;
  constexpr int kWarpsM = warps_m(C);
  constexpr int kWarpsN = C.num_warps / kWarpsM;
  constexpr int kMTiles = C.block_m / kWarpsM / 16;
  constexpr int kNTiles = C.block_n / kWarpsN / 8;
  static_assert(kNTiles % 2 == 0, "the host's rules let this pass");

  extern __shared__ __align__(128) u8 smem[];
  int* const tile_rows = reinterpret_cast<int*>(smem + C.num_stages * mx_stage_bytes(C));
  const u32 smem_base = smem_address(smem);
  const int lane = threadIdx.x % 32;
  const int warp_m = threadIdx.x / 32 / kWarpsN;
  const int warp_n = threadIdx.x / 32 % kWarpsN;

  wait_for_previous_kernel();
  let_next_kernel_start();
  Tile tile;
  if (!tile.find(params, tile_rows)) return;

  float acc[kMTiles][kNTiles][4] = {};

  // ldmatrix addresses: rows of a warp tile start at multiples of 8, so lane % 8 is the swizzle.
  // A warp's row tiles are every kWarpsM-th, so that a tile's few rows are shared evenly.
  constexpr int kRowStride = kWarpsM * 16;
  const int first_column = warp_n * (kNTiles * 8);  // of this warp's part of the tile
  const auto a_fragment = [&](u32 stage, int m, int k32, u32(&r)[4]) {
    const int row = warp_m * 16 + lane % 16;
    ldmatrix_x4(
        r, stage + (row + m * kRowStride) * C.block_k + swizzle(row, k32 * 2 + lane / 16) * 16);
  };
  const auto b_fragments = [&](u32 stage, int n, int k32, u32(&low)[2], u32(&high)[2]) {
    const int row = first_column + lane / 16 * 8 + lane % 8;
    u32 r[4];
    ldmatrix_x4(r, stage + (C.block_m + row + n * 8) * C.block_k +
                       swizzle(row, k32 * 2 + lane / 8 % 2) * 16);
    low[0] = r[0], low[1] = r[1], high[0] = r[2], high[1] = r[3];
  };
  // A word of scales of tile row `r`.
  const auto scales_of = [&](u32 stage, int r, int word) {
    return load_shared_u32(stage + Tile::kTileRows * C.block_k + (r * kWords + word) * 4);
  };

  // Row tiles of this warp that hold a row. A warp with all of them runs code without the test.
  const int active_m = (tile.num_rows - warp_m * 16 + kRowStride - 1) / kRowStride;
  constexpr bool kMayBePartial = C.block_m > 16;

  const auto compute_native = [&]<bool kAll>(u32 stage, int word) {
    u32 b_scales[kNTiles];
    u32 a_scales[kMTiles];
#pragma unroll
    for (int n = 0; n < kNTiles; ++n) {
      b_scales[n] = scales_of(stage, C.block_m + first_column + n * 8 + lane / 4, word);
    }
#pragma unroll
    for (int m = 0; m < kMTiles; ++m) {
      a_scales[m] = scales_of(stage, warp_m * 16 + m * kRowStride + lane / 4 + lane % 2 * 8, word);
    }
    const auto multiply = [&]<int kByte>() {
      const int k32 = word * 4 + kByte;
      u32 b[kNTiles][2];
#pragma unroll
      for (int n = 0; n < kNTiles; n += 2) b_fragments(stage, n, k32, b[n], b[n + 1]);
#pragma unroll
      for (int m = 0; m < kMTiles; ++m) {
        if (!kAll && m >= active_m) break;
        u32 a[4];
        a_fragment(stage, m, k32, a);
#pragma unroll
        for (int n = 0; n < kNTiles; ++n) {
          mma_mxfp8<kByte>(acc[m][n], a, b[n], a_scales[m], b_scales[n]);
        }
      }
    };
    multiply.template operator()<0>();
    multiply.template operator()<1>();
    multiply.template operator()<2>();
    multiply.template operator()<3>();
  };

  const auto compute_scaled = [&]<bool kAll>(u32 stage, int word) {
    u32 b_scales[kNTiles][2];  // of this thread's two columns
#pragma unroll
    for (int n = 0; n < kNTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        b_scales[n][i] =
            scales_of(stage, C.block_m + first_column + n * 8 + lane % 4 * 2 + i, word);
      }
    }
#pragma unroll 1
    for (int byte = 0; byte < 4; ++byte) {
      const int k32 = word * 4 + byte;
      Fp8Fragment<2> b[kNTiles];
#pragma unroll
      for (int n = 0; n < kNTiles; n += 2) {
        u32 low[2];
        u32 high[2];
        b_fragments(stage, n, k32, low, high);
        unpack_fp8(low, b[n]);
        unpack_fp8(high, b[n + 1]);
      }
#pragma unroll
      for (int m = 0; m < kMTiles; ++m) {
        if (!kAll && m >= active_m) break;
        u32 packed[4];
        Fp8Fragment<4> a;
        a_fragment(stage, m, k32, packed);
        unpack_fp8(packed, a);
        const int r = warp_m * 16 + m * kRowStride + lane / 4;
        const float row_low = scale_of(scales_of(stage, r, word), byte);
        const float row_high = scale_of(scales_of(stage, r + 8, word), byte);
#pragma unroll
        for (int n = 0; n < kNTiles; ++n) {
          float sum[4] = {};
          mma_fp8(sum, a, b[n]);
          const float column_low = scale_of(b_scales[n][0], byte);
          const float column_high = scale_of(b_scales[n][1], byte);
          acc[m][n][0] += row_low * column_low * sum[0];
          acc[m][n][1] += row_low * column_high * sum[1];
          acc[m][n][2] += row_high * column_low * sum[2];
          acc[m][n][3] += row_high * column_high * sum[3];
        }
      }
    }
  };

#pragma unroll
  for (int s = 0; s < C.num_stages - 1; ++s) {
    if (s < kNumSteps) tile.load(s, smem_base + s * mx_stage_bytes(C));
    cp_async_commit();
  }
  int read_stage = 0;
  int write_stage = C.num_stages - 1;
  for (int step = 0; step < kNumSteps; ++step) {
    cp_async_wait<C.num_stages - 2>();
    __syncthreads();
    if (step + C.num_stages - 1 < kNumSteps) {
      tile.load(step + C.num_stages - 1, smem_base + write_stage * mx_stage_bytes(C));
    }
    cp_async_commit();
    const u32 stage = smem_base + read_stage * mx_stage_bytes(C);
    const auto compute = [&]<bool kAll>() {
#pragma unroll
      for (int word = 0; word < kWords; ++word) {
        if constexpr (kNative) {
          compute_native.template operator()<kAll>(stage, word);
        } else {
          compute_scaled.template operator()<kAll>(stage, word);
        }
      }
    };
    if (!kMayBePartial || active_m >= kMTiles) {
      compute.template operator()<true>();
    } else if (active_m > 0) {
      compute.template operator()<false>();
    }
    write_stage = read_stage;
    read_stage = read_stage + 1 == C.num_stages ? 0 : read_stage + 1;
  }

  // Epilogue: a thread holds two neighbouring columns of rows lane / 4 and lane / 4 + 8.
#pragma unroll
  for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = warp_m * 16 + m * kRowStride + lane / 4 + half * 8;
      if (r >= tile.num_rows) continue;
      const i64 row = static_cast<i64>(tile.first + r) * kOutColumns;
#pragma unroll
      for (int n = 0; n < kNTiles; n += kFused ? 2 : 1) {
        const int tile_column = first_column + n * 8;
        const int column = tile.column0 + (kFused ? tile_column / 2 : tile_column) + lane % 4 * 2;
        if (kOutColumns % Tile::kTileColumns != 0 && column >= kOutColumns) continue;
        const float x0 = acc[m][n][half * 2];
        const float x1 = acc[m][n][half * 2 + 1];
        if constexpr (C.output == Output::partial) {
          *reinterpret_cast<float2*>(static_cast<float*>(params.gemm.out) + row + column) =
              make_float2(x0, x1);
        } else {
          u32 packed = 0;
          if constexpr (kFused) {
            packed = pack_bf16(silu(x0) * acc[m][n + 1][half * 2],
                               silu(x1) * acc[m][n + 1][half * 2 + 1]);
          } else {
            packed = pack_bf16(x0, x1);
          }
          *reinterpret_cast<u32*>(static_cast<u16*>(params.gemm.out) + row + column) = packed;
        }
      }
    }
  }
}

}  // namespace moetune_journey
