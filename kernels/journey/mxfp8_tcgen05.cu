// The MXFP8 GEMM (mxfp8_gemm.cu) for sm_100: tcgen05.mma, which reads both tiles from shared memory
// and their scales from tensor memory, where it also keeps the sums. One thread issues all of it.
// Tensor memory has 128 lanes of 32-bit columns. Sums: lane m, column n. Scales of 128 rows and 128
// of K: four columns, row r in lane r % 32, column r / 32, a byte for each 32 of K; the copy from
// shared memory repeats them for all four groups of 32 lanes.
#include "common/sm90.cuh"
#include "journey/mxfp8_tile.cuh"

namespace moetune_journey {

// A shared-memory matrix descriptor: K-major rows. Tiles: of 128 bytes, swizzled, groups of 8 rows
// 1024 bytes apart. Scales: of 16 bytes, groups of 8 rows 128 bytes apart.
__device__ __forceinline__ u64 descriptor(u32 address, u32 group_bytes, u64 swizzle_mode) {
  constexpr u64 kVersion = u64{1} << 46;
  return (address >> 4 & 0x3fff) | static_cast<u64>(group_bytes >> 4) << 32 | kVersion |
         swizzle_mode << 61;
}
__device__ __forceinline__ u64 tile_descriptor(u32 address) {
  constexpr u64 kSwizzle128 = 2;
  return descriptor(address, 1024, kSwizzle128);
}

#if __CUDA_ARCH__ >= 1000 && __CUDA_ARCH__ < 1200

// 128 words of scales -> 4 columns.
__device__ __forceinline__ void copy_scales(u32 tensor, u32 shared) {
  asm volatile("tcgen05.cp.cta_group::1.32x128b.warpx4 [%0], %1;\n" ::"r"(tensor),
               "l"(descriptor(shared, 128, 0))
               : "memory");
}
// Sums (+)= A[128, 32] B[32, n], where `instruction` says which byte of the scales they take.
__device__ __forceinline__ void multiply(u32 sums, u64 a, u64 b, u32 instruction, u32 a_scales,
                                         u32 b_scales, bool add) {
  asm volatile(
      "{\n.reg .pred add;\nsetp.ne.b32 add, %6, 0;\n"
      "tcgen05.mma.cta_group::1.kind::mxf8f6f4.block_scale [%0], %1, %2, %3, [%4], [%5], "
      "add;\n}\n" ::"r"(sums),
      "l"(a), "l"(b), "r"(instruction), "r"(a_scales), "r"(b_scales), "r"(static_cast<u32>(add))
      : "memory");
}
// The barrier completes a phase when all that this thread has issued so far is done.
__device__ __forceinline__ void commit(u32 barrier) {
  asm volatile(
      "tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [%0];\n" ::"r"(barrier)
      : "memory");
}
// Columns tensor..tensor + 15 of this thread's lane.
__device__ __forceinline__ void read_sums(float (&v)[16], u32 tensor) {
  u32 r[16];
  asm volatile(
      "tcgen05.ld.sync.aligned.32x32b.x16.b32 {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,"
      "%15}, [%16];\ntcgen05.wait::ld.sync.aligned;\n"
      : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]), "=r"(r[4]), "=r"(r[5]), "=r"(r[6]),
        "=r"(r[7]), "=r"(r[8]), "=r"(r[9]), "=r"(r[10]), "=r"(r[11]), "=r"(r[12]), "=r"(r[13]),
        "=r"(r[14]), "=r"(r[15])
      : "r"(tensor)
      : "memory");
#pragma unroll
  for (int i = 0; i < 16; ++i) v[i] = __uint_as_float(r[i]);
}

template <Mxfp8Config C>
__global__ void __launch_bounds__(num_threads(C)) mxfp8_tcgen05(const Mxfp8Params params) {
  using Tile = Mxfp8Tile<C>;
  constexpr int kNumSteps = Tile::kNumSteps;
  constexpr int kTensorColumns = mx_tensor_columns(C);
  // e4m3 and e4m3, K-major, N in units of 8, e8m0 scales, M in units of 128; which byte of the
  // scales goes to bits 4 and 29.
  constexpr u32 kInstruction = C.block_n / 8 << 17 | 1 << 23 | C.block_m / 128 << 27;
  static_assert(C.block_m == 128 && C.block_k == kMxWordK && C.num_warps == 4 &&
                    C.block_n % 16 == 0 && kTensorColumns <= 512,
                "the host's rules let this pass");

  extern __shared__ __align__(128) u8 smem[];
  const u32 base = (smem_address(smem) + kMxAlignment - 1) / kMxAlignment * kMxAlignment;
  u8* const behind = smem + (base - smem_address(smem)) + C.num_stages * mx_stage_bytes(C);
  int* const tile_rows = reinterpret_cast<int*>(behind);
  const u32 barriers = smem_address(behind + C.block_m * 4);
  u32* const tensor_address = reinterpret_cast<u32*>(behind + C.block_m * 4 + C.num_stages * 8);
  const int thread = threadIdx.x;
  const int warp = thread / 32;

  wait_for_previous_kernel();
  let_next_kernel_start();
  Tile tile;
  if (!tile.find(params, tile_rows)) return;

  if (warp == 0) {
    asm volatile("tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%0], %1;\n" ::"r"(
                     smem_address(tensor_address)),
                 "r"(kTensorColumns)
                 : "memory");
    asm volatile("tcgen05.relinquish_alloc_permit.cta_group::1.sync.aligned;\n" ::: "memory");
  }
  if (thread == 0) {
    for (int s = 0; s < C.num_stages; ++s) barrier_init(barriers + s * 8, 1);
    fence_barrier_init();
  }
  asm volatile("tcgen05.fence::before_thread_sync;\n" ::: "memory");
  __syncthreads();
  asm volatile("tcgen05.fence::after_thread_sync;\n" ::: "memory");
  const u32 sums = *tensor_address;

#pragma unroll
  for (int s = 0; s < C.num_stages - 1; ++s) {
    if (s < kNumSteps) tile.load(s, base + s * mx_stage_bytes(C));
    cp_async_commit();
  }
  for (int step = 0; step < kNumSteps; ++step) {
    const int read_stage = step % C.num_stages;
    cp_async_wait<C.num_stages - 2>();
    // What threads wrote, the matrix unit reads through another proxy.
    asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
    __syncthreads();
    if (thread == 0) {
      const u32 a = base + read_stage * mx_stage_bytes(C);
      const u32 b = a + C.block_m * C.block_k;
      const u32 scales = b + C.block_n * C.block_k;
      const u32 a_scales = sums + C.block_n + read_stage * mx_scale_columns(C);
      const u32 b_scales = a_scales + 4;
#pragma unroll
      for (int i = 0; i < mx_scale_columns(C) / 4; ++i) {
        copy_scales(a_scales + i * 4, scales + i * 512);
      }
#pragma unroll
      for (int byte = 0; byte < 4; ++byte) {
        multiply(sums, tile_descriptor(a + byte * kMxBlockK), tile_descriptor(b + byte * kMxBlockK),
                 kInstruction | byte << 4 | byte << 29, a_scales, b_scales, step > 0 || byte > 0);
      }
      commit(barriers + read_stage * 8);
    }
    // The stage that is loaded next is that of the step before.
    if (step > 0) {
      const int previous = step - 1;
      barrier_wait(barriers + previous % C.num_stages * 8, previous / C.num_stages % 2);
    }
    if (step + C.num_stages - 1 < kNumSteps) {
      tile.load(step + C.num_stages - 1,
                base + (step + C.num_stages - 1) % C.num_stages * mx_stage_bytes(C));
    }
    cp_async_commit();
  }
  barrier_wait(barriers + (kNumSteps - 1) % C.num_stages * 8, (kNumSteps - 1) / C.num_stages % 2);
  asm volatile("tcgen05.fence::after_thread_sync;\n" ::: "memory");

  // Epilogue: a thread holds a row, 16 columns at a time; a warp reads its own 32 lanes.
  const int row = tile.first + thread;
#pragma unroll 1
  for (int n = 0; n < C.block_n; n += 16) {
    float v[16];
    read_sums(v, sums + (warp * 32 << 16) + n);
    const int column = tile.column0 + (Tile::kFused ? n / 2 : n);
    if (thread >= tile.num_rows) continue;
#pragma unroll
    for (int i = 0; i < (Tile::kFused ? 8 : 16); i += 8) {
      if (column + i >= Tile::kOutColumns) break;
      const i64 at = static_cast<i64>(row) * Tile::kOutColumns + column + i;
      if constexpr (C.output == Output::partial) {
        float4* const out = reinterpret_cast<float4*>(static_cast<float*>(params.gemm.out) + at);
        out[0] = make_float4(v[i], v[i + 1], v[i + 2], v[i + 3]);
        out[1] = make_float4(v[i + 4], v[i + 5], v[i + 6], v[i + 7]);
      } else {
        u32 packed[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float x0 = v[i + 2 * j];
          const float x1 = v[i + 2 * j + 1];
          packed[j] = Tile::kFused ? pack_bf16(silu(x0) * v[(2 * j + 8) % 16],
                                               silu(x1) * v[(2 * j + 9) % 16])
                                   : pack_bf16(x0, x1);
        }
        *reinterpret_cast<uint4*>(static_cast<u16*>(params.gemm.out) + at) =
            make_uint4(packed[0], packed[1], packed[2], packed[3]);
      }
    }
  }
  asm volatile("tcgen05.fence::before_thread_sync;\n" ::: "memory");
  __syncthreads();
  if (warp == 0) {
    asm volatile("tcgen05.dealloc.cta_group::1.sync.aligned.b32 %0, %1;\n" ::"r"(sums),
                 "r"(kTensorColumns)
                 : "memory");
  }
}

#endif

}  // namespace moetune_journey
