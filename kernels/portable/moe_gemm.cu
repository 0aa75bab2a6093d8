// Portable grouped GEMM of a mixture-of-experts layer: out[p, n] = sum_k a[row(p), k] w[e, n, k]
// for the positions p of each expert e's slots (common/params.hpp). GEMM1 gathers row(p) = slot /
// top_k; GEMM2's rows lie packed: row(p) = p.
//
// A tile's life: one thread block takes one tile (block_m positions x block_n weight rows, one
// split of K). cp.async brings K steps of block_k into a ring of num_stages shared-memory stages,
// 16-byte chunks XOR-swizzled so that ldmatrix meets no bank conflict. Each warp multiplies its
// part with mma.sync into fp32 registers. bf16 and e4m3 share every byte address: an mma takes 32
// bytes of K of either. With block scales, 128 of K go to a temporary that is scaled into the
// accumulators.
#include "common/params.hpp"
#include "common/ptx.cuh"
#include "common/walk.cuh"
#include "portable/config.hpp"

namespace moetune {

// Chunk of 16 bytes -> where it lies in its row.
template <int kChunks>
__device__ __forceinline__ int swizzle(int row, int chunk) {
  if constexpr (kChunks >= 8) return chunk ^ (row & 7);
  return chunk ^ ((row / (8 / kChunks)) & (kChunks - 1));
}

template <GemmConfig C>
__global__ void __launch_bounds__(C.num_warps * 32) moe_gemm(const GemmParams p) {
  constexpr bool kFused = C.output == Output::swiglu;
  constexpr bool kBlockScales = C.scales == Scales::block;
  constexpr int kElement = C.fp8 ? 1 : 2;
  constexpr int kRowBytes = row_bytes(C);
  constexpr int kChunks = kRowBytes / 16;
  constexpr int kThreads = num_threads(C);
  constexpr int kWarpsM = warps_m(C);
  constexpr int kWarpsN = C.num_warps / kWarpsM;
  constexpr int kMTiles = C.block_m / kWarpsM / 16;
  constexpr int kNTiles = C.block_n / kWarpsN / 8;
  constexpr int kOutColumns = kFused ? C.size_n / 2 : C.size_n;
  constexpr int kTileColumns = kFused ? C.block_n / 2 : C.block_n;
  constexpr int kColumnTiles = (kOutColumns + kTileColumns - 1) / kTileColumns;
  constexpr int kTotalSteps = (C.size_k + C.block_k - 1) / C.block_k;
  constexpr i64 kRowPitch = static_cast<i64>(C.size_k) * kElement;
  static_assert(kWarpsM > 0 && kThreads % (kChunks * 8) == 0, "the host's rules let this pass");

  extern __shared__ __align__(128) u8 smem[];
  int* const tile_rows = reinterpret_cast<int*>(smem + C.num_stages * stage_bytes(C));

  const int thread = threadIdx.x;
  const int warp = thread / 32;
  const int lane = thread % 32;
  const int warp_m = warp / kWarpsN;
  const int warp_n = warp % kWarpsN;

  // GEMM2's tile list and weights are there before the kernel that writes its rows has ended, for
  // that kernel itself waited for the sort before it let this one start.
  if constexpr (C.gather) {
    wait_for_previous_kernel();
    let_next_kernel_start();
  }

  // Which tile. Blocks beyond the tiles that this routing has leave at once.
  const int block = blockIdx.x;
  const RowTile at_block = load_row_tile(p, kColumnTiles, block);
  const int row_tiles = load_past_l1(p.num_tiles);
  if (block >= row_tiles * kColumnTiles) return;
  const auto [tile, column_tile] = find_tile(p, row_tiles, kColumnTiles, block, at_block);
  const int expert = tile.expert;
  const int num_rows = tile.num_rows;
  const int column0 = column_tile * kTileColumns;
  for (int r = thread; r < C.block_m; r += kThreads) {
    int row = tile.first + r;
    if constexpr (C.gather) {
      if (r < num_rows) row = p.sorted_slots[row] / C.top_k;
    }
    tile_rows[r] = r < num_rows ? row : -1;
  }
  __syncthreads();

  // This thread's share of the loads: one chunk column, every kLoadRows-th row.
  constexpr int kLoadRows = kThreads / kChunks;
  constexpr int kALoads = (C.block_m + kLoadRows - 1) / kLoadRows;
  constexpr int kBLoads = (C.block_n + kLoadRows - 1) / kLoadRows;
  const int load_row = thread / kChunks;
  const int load_chunk = thread % kChunks;
  // Rows are at least 16 bytes apart, so 32 bits of 16-byte units reach 64 GiB.
  u32 a_offset[kALoads];
  bool a_valid[kALoads];
#pragma unroll
  for (int i = 0; i < kALoads; ++i) {
    const int r = load_row + i * kLoadRows;
    const int row = r < C.block_m ? tile_rows[r] : -1;
    a_valid[i] = row >= 0;
    a_offset[i] = a_valid[i] ? static_cast<u32>(row * (kRowPitch / 16)) : 0;
  }
  // Fused: groups of 8 tile rows alternate between gate and up rows of the same columns, so that
  // a thread holds both halves of an output element.
  const auto weight_row = [&](int r) {
    if constexpr (kFused) {
      return (r / 8 % 2) * kOutColumns + column0 + r / 16 * 8 + r % 8;
    } else {
      return column0 + r;
    }
  };
  const auto column_valid = [&](int r) {
    if constexpr (kOutColumns % kTileColumns == 0) return true;
    const int column = kFused ? column0 + r / 16 * 8 + r % 8 : column0 + r;
    return column < kOutColumns;
  };
  const u8* const a_base = static_cast<const u8*>(p.a) + load_chunk * 16;
  const u8* const w_base = static_cast<const u8*>(p.w) + expert * (C.size_n * kRowPitch) +
                           weight_row(load_row) * kRowPitch + load_chunk * 16;

  const int split = blockIdx.y;
  const int step_begin = kTotalSteps * split / p.split_k;
  const int num_steps = kTotalSteps * (split + 1) / p.split_k - step_begin;

  constexpr int kScaleColumns = C.size_k / kScaleGroup;
  constexpr int kScaleGroups = scale_groups(C);
  constexpr int kScaleBlocks = weight_scale_blocks(C);
  constexpr int kScalesPerGroup = C.block_m + kScaleBlocks;

  // Block scales: item i of a group is row i's scale, or after the rows a weight block's.
  constexpr int kScaleLoads = kBlockScales ? (kScalesPerGroup + kThreads - 1) / kThreads : 1;
  const float* scale_source[kScaleLoads];
  bool scale_valid[kScaleLoads];
  if constexpr (kBlockScales) {
#pragma unroll
    for (int i = 0; i < kScaleLoads; ++i) {
      const int item = thread + i * kThreads;
      scale_source[i] = p.a_scale;
      scale_valid[i] = false;
      if (item < C.block_m) {
        const int row = tile_rows[item];
        scale_valid[i] = row >= 0;
        if (row >= 0) scale_source[i] += C.gather ? static_cast<i64>(row) * kScaleColumns : row;
      } else if (item < kScalesPerGroup) {
        constexpr int kHalves = kFused ? 2 : 1;
        const int block_index = item - C.block_m;
        const int column = column0 + block_index / kHalves * kScaleGroup;
        const int row = (kFused ? block_index % 2 : 0) * kOutColumns + column;
        scale_valid[i] = column < kOutColumns;
        if (scale_valid[i]) {
          scale_source[i] = p.w_scale + (static_cast<i64>(expert) * (C.size_n / kScaleGroup) +
                                         row / kScaleGroup) *
                                            kScaleColumns;
        }
      }
    }
  }

  const u32 smem_base = smem_address(smem);
  const u32 store_a = load_row * kRowBytes + swizzle<kChunks>(load_row, load_chunk) * 16;

  const auto in_k = [&](int k) {
    return C.size_k % C.block_k == 0 || k + load_chunk * (16 / kElement) < C.size_k;
  };
  // Rows, and all scales.
  const auto load_rows = [&](int step, int stage) {
    const u32 a_stage = smem_base + stage * stage_bytes(C);
    const int k = (step_begin + step) * C.block_k;
    const bool valid_k = in_k(k);
    const i64 k_bytes = static_cast<i64>(k) * kElement;
#pragma unroll
    for (int i = 0; i < kALoads; ++i) {
      if (C.block_m % kLoadRows != 0 && load_row + i * kLoadRows >= C.block_m) continue;
      // kLoadRows is a multiple of 8, so the swizzle of row + i * kLoadRows is that of row.
      cp_async_16(a_stage + store_a + i * kLoadRows * kRowBytes,
                  a_base + static_cast<i64>(a_offset[i]) * 16 + (valid_k ? k_bytes : 0),
                  a_valid[i] && valid_k);
    }
    if constexpr (kBlockScales) {
      const u32 scales = a_stage + (C.block_m + C.block_n) * kRowBytes;
#pragma unroll
      for (int i = 0; i < kScaleLoads; ++i) {
        const int item = thread + i * kThreads;
        if (item >= kScalesPerGroup) break;
#pragma unroll
        for (int group = 0; group < kScaleGroups; ++group) {
          const int column = k / kScaleGroup + group;
          // Packed rows' scales lie by column groups.
          const i64 step =
              !C.gather && item < C.block_m ? static_cast<i64>(column) * p.scale_pitch : column;
          cp_async_4(scales + (group * kScalesPerGroup + item) * 4, scale_source[i] + step,
                     scale_valid[i] && (kScaleGroups == 1 || column < kScaleColumns));
        }
      }
    }
  };

  const auto load_weights = [&](int step, int stage) {
    const u32 b_stage = smem_base + stage * stage_bytes(C) + C.block_m * kRowBytes;
    const int k = (step_begin + step) * C.block_k;
    const bool valid_k = in_k(k);
#pragma unroll
    for (int i = 0; i < kBLoads; ++i) {
      const int r = load_row + i * kLoadRows;
      const bool valid = valid_k && column_valid(r);
      const i64 row_offset = static_cast<i64>(weight_row(r) - weight_row(load_row)) * kRowPitch;
      cp_async_16(b_stage + store_a + i * kLoadRows * kRowBytes,
                  w_base + (valid ? row_offset + static_cast<i64>(k) * kElement : 0), valid);
    }
  };

  float acc[kMTiles][kNTiles][4] = {};

  // ldmatrix addresses: rows of a warp tile start at multiples of 8, so lane % 8 is the swizzle.
  // A warp's row tiles are every kWarpsM-th, so that a tile's few rows are shared evenly.
  constexpr int kRowStride = kWarpsM * 16;
  const int a_lane_row = warp_m * 16 + lane % 16;
  const int b_lane_row = warp_n * (kNTiles * 8) + lane / 16 * 8 + lane % 8;
  const u32 a_lane = a_lane_row * kRowBytes;
  const u32 b_lane = C.block_m * kRowBytes + b_lane_row * kRowBytes;
  const auto a_fragment = [&](u32 stage, int m, int k32, u32(&r)[4]) {
    ldmatrix_x4(r, stage + a_lane + m * kRowStride * kRowBytes +
                       swizzle<kChunks>(a_lane_row, k32 * 2 + lane / 16) * 16);
  };
  const auto b_fragments = [&](u32 stage, int n, int k32, u32(&low)[2], u32(&high)[2]) {
    const u32 address = stage + b_lane + n * 8 * kRowBytes +
                        swizzle<kChunks>(b_lane_row, k32 * 2 + lane / 8 % 2) * 16;
    u32 r[4];
    ldmatrix_x4(r, address);
    low[0] = r[0], low[1] = r[1], high[0] = r[2], high[1] = r[3];
  };
  const auto b_fragment = [&](u32 stage, int n, int k32, u32(&r)[2]) {
    ldmatrix_x2(r[0], r[1],
                stage + b_lane + n * 8 * kRowBytes +
                    swizzle<kChunks>(b_lane_row, k32 * 2 + lane / 8 % 2) * 16);
  };

  const auto b_fragment_k64 = [&](u32 stage, int n, int k32, u32(&r)[4]) {
    const int row = warp_n * (kNTiles * 8) + lane % 8;
    ldmatrix_x4(r, stage + C.block_m * kRowBytes + (row + n * 8) * kRowBytes +
                       swizzle<kChunks>(row, k32 * 2 + lane / 8) * 16);
  };

  // Row tiles of this warp that hold a row. A warp with all of them runs code without the test.
  const int active_m = (num_rows - warp_m * 16 + kRowStride - 1) / kRowStride;
  constexpr bool kMayBePartial = C.block_m > 16;

  // Plain accumulation: bf16, and e4m3 whose scales are applied at the end.
  const auto compute_plain = [&]<bool kAll>(u32 stage) {
#pragma unroll
    for (int k32 = 0; k32 < kRowBytes / 32; ++k32) {
      u32 b[kNTiles][2];
      if constexpr (kNTiles % 2 == 0) {
#pragma unroll
        for (int n = 0; n < kNTiles; n += 2) b_fragments(stage, n, k32, b[n], b[n + 1]);
      } else {
#pragma unroll
        for (int n = 0; n < kNTiles; ++n) b_fragment(stage, n, k32, b[n]);
      }
      if constexpr (C.fp8) {
        Fp8Fragment<2> b_wide[kNTiles];
#pragma unroll
        for (int n = 0; n < kNTiles; ++n) unpack_fp8(b[n], b_wide[n]);
#pragma unroll
        for (int m = 0; m < kMTiles; ++m) {
          if (!kAll && m >= active_m) break;
          u32 a[4];
          Fp8Fragment<4> a_wide;
          a_fragment(stage, m, k32, a);
          unpack_fp8(a, a_wide);
#pragma unroll
          for (int n = 0; n < kNTiles; ++n) mma_fp8(acc[m][n], a_wide, b_wide[n]);
        }
      } else {
#pragma unroll
        for (int m = 0; m < kMTiles; ++m) {
          if (!kAll && m >= active_m) break;
          u32 a[4];
          a_fragment(stage, m, k32, a);
#pragma unroll
          for (int n = 0; n < kNTiles; ++n) mma_bf16(acc[m][n], a, b[n]);
        }
      }
    }
  };

  // Two-level accumulation: 128 of K into a temporary, then scaled into the accumulators. Row
  // tiles are outermost: only one's operands are held, at the price of reading B again.
  const auto compute_scaled = [&]<bool kAll>(u32 stage, const float* scales) {
    constexpr int kSteps = (kRowBytes < kScaleGroup ? kRowBytes : kScaleGroup) / 32;
#pragma unroll
    for (int group = 0; group < kScaleGroups; ++group) {
      const float* const a_scales = scales + group * kScalesPerGroup;
      const float* const w_scales = a_scales + C.block_m;
#pragma unroll
      for (int m = 0; m < kMTiles; ++m) {
        if (!kAll && m >= active_m) break;
        Fp8Fragment<4> a[kSteps];
#pragma unroll
        for (int k = 0; k < kSteps; ++k) {
          u32 packed[4];
          a_fragment(stage, m, group * kSteps + k, packed);
          unpack_fp8(packed, a[k]);
        }
        const int r = warp_m * 16 + m * kRowStride + lane / 4;
        const float row_low = a_scales[r];
        const float row_high = a_scales[r + 8];
#pragma unroll
        for (int n = 0; n < kNTiles; ++n) {
          float sum[4] = {};
#pragma unroll
          for (int k = 0; k < kSteps; k += 2) {
            // Two K steps in one ldmatrix: chunks 0..3 of the 64 bytes.
            u32 packed[4];
            b_fragment_k64(stage, n, group * kSteps + k, packed);
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              const u32 pair[2] = {packed[2 * i], packed[2 * i + 1]};
              Fp8Fragment<2> b;
              unpack_fp8(pair, b);
              mma_fp8(sum, a[k + i], b);
            }
          }
          const int tile_row = warp_n * (kNTiles * 8) + n * 8;
          const int scale_block = kFused ? tile_row / 16 * 8 / kScaleGroup * 2 + tile_row / 8 % 2
                                         : tile_row / kScaleGroup;
          const float w_scale = w_scales[scale_block];
          const float low = row_low * w_scale;
          const float high = row_high * w_scale;
          acc[m][n][0] += low * sum[0];
          acc[m][n][1] += low * sum[1];
          acc[m][n][2] += high * sum[2];
          acc[m][n][3] += high * sum[3];
        }
      }
    }
  };

#pragma unroll
  for (int s = 0; s < C.num_stages - 1; ++s) {
    if (s < num_steps) load_weights(s, s);
  }
  if constexpr (!C.gather) {
    wait_for_previous_kernel();
    let_next_kernel_start();
  }
#pragma unroll
  for (int s = 0; s < C.num_stages - 1; ++s) {
    if (s < num_steps) load_rows(s, s);
    cp_async_commit();
  }
  int read_stage = 0;
  int write_stage = C.num_stages - 1;
  for (int step = 0; step < num_steps; ++step) {
    cp_async_wait<C.num_stages - 2>();
    __syncthreads();
    if (step + C.num_stages - 1 < num_steps) {
      load_weights(step + C.num_stages - 1, write_stage);
      load_rows(step + C.num_stages - 1, write_stage);
    }
    cp_async_commit();
    const u32 stage = smem_base + read_stage * stage_bytes(C);
    const auto compute = [&]<bool kAll>() {
      if constexpr (kBlockScales) {
        const u8* const scales =
            smem + read_stage * stage_bytes(C) + (C.block_m + C.block_n) * kRowBytes;
        compute_scaled.template operator()<kAll>(stage, reinterpret_cast<const float*>(scales));
      } else {
        compute_plain.template operator()<kAll>(stage);
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

  // Epilogue: a thread holds two neighbouring columns of rows lane/4 and lane/4 + 8.
  const float expert_scale = C.scales == Scales::tensor ? p.w_scale[expert] : 1.0f;
#pragma unroll
  for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = warp_m * 16 + m * kRowStride + lane / 4 + half * 8;
      if (r >= num_rows) continue;
      float scale = 1.0f;
      if constexpr (C.scales == Scales::tensor) scale = expert_scale * p.a_scale[tile_rows[r]];
      i64 row = tile.first + r;
      if constexpr (C.output == Output::partial) row += static_cast<i64>(split) * p.num_slots;
      if constexpr (C.output == Output::weighted_sum) {
        const int slot = __ldg(p.sorted_slots + row);
        scale *= __ldg(p.topk_weights + slot);
        row = slot / C.top_k;
      }
      row *= kOutColumns;
#pragma unroll
      for (int n = 0; n < kNTiles; n += kFused ? 2 : 1) {
        const int tile_column = (warp_n * kNTiles + n) * 8;
        const int column = column0 + (kFused ? tile_column / 2 : tile_column) + lane % 4 * 2;
        if (kOutColumns % kTileColumns != 0 && column >= kOutColumns) continue;
        const float x0 = acc[m][n][half * 2] * scale;
        const float x1 = acc[m][n][half * 2 + 1] * scale;
        if constexpr (C.output == Output::partial) {
          *reinterpret_cast<float2*>(static_cast<float*>(p.out) + row + column) =
              make_float2(x0, x1);
        } else {
          u32 packed;
          if constexpr (kFused) {
            const float up0 = acc[m][n + 1][half * 2] * scale;
            const float up1 = acc[m][n + 1][half * 2 + 1] * scale;
            packed = pack_bf16(silu(x0) * up0, silu(x1) * up1);
          } else {
            packed = pack_bf16(x0, x1);
          }
          u16* const target = static_cast<u16*>(p.out) + row + column;
          if constexpr (C.output == Output::weighted_sum) {
            add_two_bf16(target, packed);
          } else {
            *reinterpret_cast<u32*>(target) = packed;
          }
        }
      }
    }
  }
}

}  // namespace moetune
