// What only Hopper has: barriers that count bytes (mbarrier), the copy engine (TMA), matrix
// instructions of a whole warpgroup (WGMMA), registers that move between warpgroups (setmaxnreg).
// PTX ISA: https://docs.nvidia.com/cuda/parallel-thread-execution/
#pragma once

#include "common/ptx.cuh"

namespace moetune {

// A CUtensorMap by another name: 128 opaque bytes.
struct alignas(64) TensorMap {
  u64 opaque[16];
};

__device__ __forceinline__ void barrier_init(u32 barrier, u32 arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(barrier), "r"(arrivals)
               : "memory");
}
// Makes initialised barriers visible to the copy engine.
__device__ __forceinline__ void fence_barrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
}
__device__ __forceinline__ void barrier_arrive(u32 barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(barrier) : "memory");
}
// Arrives, and makes the phase wait for `bytes` of the copy engine.
__device__ __forceinline__ void barrier_expect_bytes(u32 barrier, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(barrier), "r"(bytes)
               : "memory");
}
// Arrives once all earlier cp.async of this thread have landed.
__device__ __forceinline__ void barrier_arrive_after_cp_async(u32 barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];\n" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void barrier_wait(u32 barrier, u32 parity) {
  u32 done = 0;
  while (done == 0) {
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}\n"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
  }
}

// Whether that phase has ended, without waiting.
__device__ __forceinline__ bool barrier_test(u32 barrier, u32 parity) {
  u32 done = 0;
  asm volatile(
      "{\n.reg .pred p;\n"
      "mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n}\n"
      : "=r"(done)
      : "r"(barrier), "r"(parity)
      : "memory");
  return done != 0;
}

// A ring of stages between those that fill and those that empty it, as one side sees it.
template <int kNumStages>
struct Ring {
  int stage = 0;
  u32 parity = 0;
  template <int kCount = 1>
  __device__ __forceinline__ void advance() {
    stage += kCount % kNumStages;
    parity ^= kCount / kNumStages & 1;
    if (stage >= kNumStages) {
      stage -= kNumStages;
      parity ^= 1;
    }
  }
};

// Counts, and nothing more: orders no other access.
__device__ __forceinline__ int add_relaxed(int* counter, int value) {
  int before;
  asm volatile("atom.relaxed.gpu.global.add.s32 %0, [%1], %2;\n"
               : "=r"(before)
               : "l"(counter), "r"(value)
               : "memory");
  return before;
}

// Counts what other blocks wait for: all that this thread has written or seen written before.
__device__ __forceinline__ void add_release(int* counter, int value) {
  asm volatile("red.release.gpu.global.add.s32 [%0], %1;\n" ::"l"(counter), "r"(value) : "memory");
}
__device__ __forceinline__ int load_acquire(const int* counter) {
  int value;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];\n" : "=r"(value) : "l"(counter) : "memory");
  return value;
}

// Read by lane 0 and handed on to its warp: a barrier's arrival by that lane alone then orders the
// read before the next write.
__device__ __forceinline__ u32 load_for_warp(u32 shared) {
  u32 value = 0;
  if (threadIdx.x % 32 == 0) value = load_shared_u32(shared);
  return __shfl_sync(0xffffffffu, value, 0);
}
__device__ __forceinline__ uint4 load_16_for_warp(u32 shared) {
  uint4 v{};
  if (threadIdx.x % 32 == 0) v = load_shared_16(shared);
  return make_uint4(__shfl_sync(0xffffffffu, v.x, 0), __shfl_sync(0xffffffffu, v.y, 0),
                    __shfl_sync(0xffffffffu, v.z, 0), __shfl_sync(0xffffffffu, v.w, 0));
}

// Adds eight bf16 to those at `global`, rounding each sum, in no fixed order.
__device__ __forceinline__ void add_eight_bf16(void* global, uint4 v) {
  asm volatile("red.relaxed.gpu.global.add.noftz.v4.bf16x2 [%0], {%1, %2, %3, %4};\n" ::"l"(global),
               "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
}

__device__ __forceinline__ void add_four_bf16(void* global, uint2 v) {
  asm volatile("red.relaxed.gpu.global.add.noftz.v2.bf16x2 [%0], {%1, %2};\n" ::"l"(global),
               "r"(v.x), "r"(v.y)
               : "memory");
}

// A named barrier (0 is __syncthreads) of some warps.
template <int kThreads>
__device__ __forceinline__ void warps_sync(int barrier) {
  asm volatile("bar.sync %0, %1;\n" ::"r"(barrier), "n"(kThreads) : "memory");
}
// Transposes an 8x8 matrix of 16-bit elements, of which lane l holds row l / 4, columns l % 4 * 2
// and the next.
__device__ __forceinline__ u32 transpose_8x8(u32 two) {
  u32 transposed;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;\n" : "=r"(transposed) : "r"(two));
  return transposed;
}

__device__ __forceinline__ void prefetch_tensor_map(const TensorMap& map) {
  asm volatile("prefetch.tensormap [%0];\n" ::"l"(&map) : "memory");
}
// Thread blocks of a cluster: this one's number, and all waiting for all.
__device__ __forceinline__ u32 cluster_rank() {
  u32 rank;
  asm("mov.u32 %0, %%cluster_ctarank;\n" : "=r"(rank));
  return rank;
}
__device__ __forceinline__ void cluster_wait() {
  asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;\n" ::: "memory");
}
// `address` of this block's shared memory, in that of block `rank`.
__device__ __forceinline__ u32 in_block(u32 address, u32 rank) {
  u32 remote;
  asm("mapa.shared::cluster.u32 %0, %1, %2;\n" : "=r"(remote) : "r"(address), "r"(rank));
  return remote;
}
// Of any block, by an address from in_block.
__device__ __forceinline__ void remote_arrive(u32 barrier) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];\n" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void remote_expect_bytes(u32 barrier, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cluster.b64 _, [%0], %1;\n" ::"r"(barrier),
               "r"(bytes)
               : "memory");
}
// 16 bytes, counted on a barrier of the block that they go to.
__device__ __forceinline__ void remote_store_16(u32 address, int a, int b, int c, int d,
                                                u32 barrier) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, "
      "[%5];\n" ::"r"(address),
      "r"(a), "r"(b), "r"(c), "r"(d), "r"(barrier)
      : "memory");
}
// A box to the same place of the blocks in `mask`, counted on the same barrier of each.
__device__ __forceinline__ void tma_load_to(u32 mask, u32 shared, const TensorMap& map, int column,
                                            int row, u32 barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;\n" ::"r"(shared),
      "l"(&map), "r"(column), "r"(row), "r"(barrier), "h"(static_cast<u16>(mask))
      : "memory");
}
// A box from (row, column) of the map's matrix to `shared`, counted on `barrier`.
__device__ __forceinline__ void tma_load(u32 shared, const TensorMap& map, int column, int row,
                                         u32 barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3}], [%4];\n" ::"r"(shared),
      "l"(&map), "r"(column), "r"(row), "r"(barrier)
      : "memory");
}

template <int kRegisters>
__device__ __forceinline__ void give_up_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}

// A K-major operand in shared memory, rows of 128 bytes swizzled over 128 bytes, groups of eight
// rows 1024 bytes apart and aligned: the low half of its descriptor; the high one is the same for
// all. Adding 2 moves by 32 bytes of K.
constexpr u32 kDescriptorHigh = 1u << 30 | 1024 >> 4;
__device__ __forceinline__ u32 matrix_descriptor(u32 shared) {
  return 1u << 16 | (shared & 0x3ffff) >> 4;
}

__device__ __forceinline__ void wgmma_begin() {
  asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
}
// Ends a batch...
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}
// ...and waits until at most kPending are unfinished.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kPending) : "memory");
}
// Keeps the compiler from using a finished batch's sums before the wait.
template <int N>
__device__ __forceinline__ void wgmma_results(float (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// D[64, N] = A[64, 32 bytes of K] B[N, 32 bytes of K]^T + (accumulate ? D : 0) in fp32. A thread
// holds d[4 j + i]: row 16 warp + lane / 4 + i / 2 * 8, column 8 j + lane % 4 * 2 + i % 2.
template <int N>
struct Wgmma;

#define MOETUNE_R0 "%0, %1, %2, %3, %4, %5, %6, %7"
#define MOETUNE_R1 "%8, %9, %10, %11, %12, %13, %14, %15"
#define MOETUNE_R2 "%16, %17, %18, %19, %20, %21, %22, %23"
#define MOETUNE_R3 "%24, %25, %26, %27, %28, %29, %30, %31"
#define MOETUNE_R4 "%32, %33, %34, %35, %36, %37, %38, %39"
#define MOETUNE_R5 "%40, %41, %42, %43, %44, %45, %46, %47"
#define MOETUNE_R6 "%48, %49, %50, %51, %52, %53, %54, %55"
#define MOETUNE_R7 "%56, %57, %58, %59, %60, %61, %62, %63"
#define MOETUNE_R8 "%64, %65, %66, %67, %68, %69, %70, %71"
#define MOETUNE_R9 "%72, %73, %74, %75, %76, %77, %78, %79"
#define MOETUNE_R10 "%80, %81, %82, %83, %84, %85, %86, %87"
#define MOETUNE_R11 "%88, %89, %90, %91, %92, %93, %94, %95"
#define MOETUNE_R12 "%96, %97, %98, %99, %100, %101, %102, %103"
#define MOETUNE_R13 "%104, %105, %106, %107, %108, %109, %110, %111"
#define MOETUNE_R14 "%112, %113, %114, %115, %116, %117, %118, %119"
#define MOETUNE_R15 "%120, %121, %122, %123, %124, %125, %126, %127"
#define MOETUNE_D(i)                                                                          \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define MOETUNE_WGMMA(N, REGISTERS, A, B, P, H, ...)                                               \
  template <>                                                                                      \
  struct Wgmma<N> {                                                                                \
    static __device__ __forceinline__ void bf16(float (&d)[N / 2], u32 a, u32 b, int accumulate) { \
      asm volatile("{\n.reg .pred p;\n.reg .b64 a, b;\nsetp.ne.b32 p, " P ", 0;\nmov.b64 a, {" A   \
                   ", " H "};\nmov.b64 b, {" B ", " H                                              \
                   "};\n"                                                                          \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" REGISTERS          \
                   "}, a, b, p, 1, 1, 0, 0;\n}\n"                                                  \
                   : __VA_ARGS__                                                                   \
                   : "r"(a), "r"(b), "r"(accumulate), "r"(kDescriptorHigh));                       \
    }                                                                                              \
    static __device__ __forceinline__ void e4m3(float (&d)[N / 2], u32 a, u32 b, int accumulate) { \
      asm volatile("{\n.reg .pred p;\n.reg .b64 a, b;\nsetp.ne.b32 p, " P ", 0;\nmov.b64 a, {" A   \
                   ", " H "};\nmov.b64 b, {" B ", " H                                              \
                   "};\n"                                                                          \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k32.f32.e4m3.e4m3 {" REGISTERS          \
                   "}, a, b, p, 1, 1;\n}\n"                                                        \
                   : __VA_ARGS__                                                                   \
                   : "r"(a), "r"(b), "r"(accumulate), "r"(kDescriptorHigh));                       \
    }                                                                                              \
  };
MOETUNE_WGMMA(8, "%0, %1, %2, %3", "%4", "%5", "%6", "%7", "+f"(d[0]), "+f"(d[1]), "+f"(d[2]),
              "+f"(d[3]))
MOETUNE_WGMMA(16, MOETUNE_R0, "%8", "%9", "%10", "%11", MOETUNE_D(0))
MOETUNE_WGMMA(32, MOETUNE_R0 ", " MOETUNE_R1, "%16", "%17", "%18", "%19", MOETUNE_D(0),
              MOETUNE_D(8))
MOETUNE_WGMMA(64, MOETUNE_R0 ", " MOETUNE_R1 ", " MOETUNE_R2 ", " MOETUNE_R3, "%32", "%33", "%34",
              "%35", MOETUNE_D(0), MOETUNE_D(8), MOETUNE_D(16), MOETUNE_D(24))
MOETUNE_WGMMA(96,
              MOETUNE_R0 ", " MOETUNE_R1 ", " MOETUNE_R2 ", " MOETUNE_R3 ", " MOETUNE_R4
                         ", " MOETUNE_R5,
              "%48", "%49", "%50", "%51", MOETUNE_D(0), MOETUNE_D(8), MOETUNE_D(16), MOETUNE_D(24),
              MOETUNE_D(32), MOETUNE_D(40))
MOETUNE_WGMMA(128,
              MOETUNE_R0 ", " MOETUNE_R1 ", " MOETUNE_R2 ", " MOETUNE_R3 ", " MOETUNE_R4
                         ", " MOETUNE_R5 ", " MOETUNE_R6 ", " MOETUNE_R7,
              "%64", "%65", "%66", "%67", MOETUNE_D(0), MOETUNE_D(8), MOETUNE_D(16), MOETUNE_D(24),
              MOETUNE_D(32), MOETUNE_D(40), MOETUNE_D(48), MOETUNE_D(56))
MOETUNE_WGMMA(192,
              MOETUNE_R0 ", " MOETUNE_R1 ", " MOETUNE_R2 ", " MOETUNE_R3 ", " MOETUNE_R4
                         ", " MOETUNE_R5 ", " MOETUNE_R6 ", " MOETUNE_R7 ", " MOETUNE_R8
                         ", " MOETUNE_R9 ", " MOETUNE_R10 ", " MOETUNE_R11,
              "%96", "%97", "%98", "%99", MOETUNE_D(0), MOETUNE_D(8), MOETUNE_D(16), MOETUNE_D(24),
              MOETUNE_D(32), MOETUNE_D(40), MOETUNE_D(48), MOETUNE_D(56), MOETUNE_D(64),
              MOETUNE_D(72), MOETUNE_D(80), MOETUNE_D(88))
MOETUNE_WGMMA(256,
              MOETUNE_R0 ", " MOETUNE_R1 ", " MOETUNE_R2 ", " MOETUNE_R3 ", " MOETUNE_R4
                         ", " MOETUNE_R5 ", " MOETUNE_R6 ", " MOETUNE_R7 ", " MOETUNE_R8
                         ", " MOETUNE_R9 ", " MOETUNE_R10 ", " MOETUNE_R11 ", " MOETUNE_R12
                         ", " MOETUNE_R13 ", " MOETUNE_R14 ", " MOETUNE_R15,
              "%128", "%129", "%130", "%131", MOETUNE_D(0), MOETUNE_D(8), MOETUNE_D(16),
              MOETUNE_D(24), MOETUNE_D(32), MOETUNE_D(40), MOETUNE_D(48), MOETUNE_D(56),
              MOETUNE_D(64), MOETUNE_D(72), MOETUNE_D(80), MOETUNE_D(88), MOETUNE_D(96),
              MOETUNE_D(104), MOETUNE_D(112), MOETUNE_D(120))
#undef MOETUNE_WGMMA
#undef MOETUNE_D
#undef MOETUNE_R0
#undef MOETUNE_R1
#undef MOETUNE_R2
#undef MOETUNE_R3
#undef MOETUNE_R4
#undef MOETUNE_R5
#undef MOETUNE_R6
#undef MOETUNE_R7
#undef MOETUNE_R8
#undef MOETUNE_R9
#undef MOETUNE_R10
#undef MOETUNE_R11
#undef MOETUNE_R12
#undef MOETUNE_R13
#undef MOETUNE_R14
#undef MOETUNE_R15

}  // namespace moetune
