// Thin wrappers over the PTX instructions the kernels use, and number formats without headers.
// PTX ISA: https://docs.nvidia.com/cuda/parallel-thread-execution/
#pragma once

namespace moetune {

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i64 = long long;

__device__ __forceinline__ u32 smem_address(const void* pointer) {
  return static_cast<u32>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ u32 load_shared_u32(u32 address) {
  u32 value;
  asm volatile("ld.shared.u32 %0, [%1];\n" : "=r"(value) : "r"(address) : "memory");
  return value;
}
__device__ __forceinline__ uint4 load_shared_16(u32 address) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(address)
               : "memory");
  return v;
}
__device__ __forceinline__ void store_shared(u32 address, u32 value) {
  asm volatile("st.shared.u32 [%0], %1;\n" ::"r"(address), "r"(value) : "memory");
}
__device__ __forceinline__ void store_shared(u32 address, u16 value) {
  asm volatile("st.shared.u16 [%0], %1;\n" ::"r"(address), "h"(value) : "memory");
}
__device__ __forceinline__ void store_shared_16(u32 address, int a, int b, int c, int d) {
  asm volatile("st.shared.v4.s32 [%0], {%1,%2,%3,%4};\n" ::"r"(address), "r"(a), "r"(b), "r"(c),
               "r"(d)
               : "memory");
}

// Loads that stay where they are written: the compiler moves others.
__device__ __forceinline__ float load_now(const float* global) {
  float value;
  asm volatile("ld.global.f32 %0, [%1];\n" : "=f"(value) : "l"(global) : "memory");
  return value;
}
// The same of what no kernel writes.
__device__ __forceinline__ float load_constant(const float* global) {
  float value;
  asm volatile("ld.global.nc.f32 %0, [%1];\n" : "=f"(value) : "l"(global) : "memory");
  return value;
}

// 16 bytes global -> shared, bypassing L1; zeros when !valid (then `global` is not read).
__device__ __forceinline__ void cp_async_16(u32 shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;\n" ::"r"(shared),
               "l"(global), "r"(valid ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void cp_async_4(u32 shared, const void* global, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;\n" ::"r"(shared), "l"(global),
               "r"(valid ? 4 : 0)
               : "memory");
}
__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

// Four 8x8 matrices of 16-bit elements (or 8x16 of bytes): lane i gives the address of row i.
__device__ __forceinline__ void ldmatrix_x4(u32 (&r)[4], u32 shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared)
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x2(u32& r0, u32& r1, u32 shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];\n"
               : "=r"(r0), "=r"(r1)
               : "r"(shared)
               : "memory");
}

// D[16,8] += A[16,k] B[k,8], fp32 accumulators; k = 16 for bf16, 32 for e4m3: 32 bytes either way.
__device__ __forceinline__ void mma_bf16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// e4m3 operands as the matrix unit takes them. sm_89 and sm_120 multiply e4m3 themselves. sm_90 and
// sm_100 do so only through wgmma and tcgen05, so there operands are widened to f16, which is
// exact: two mma of k = 16 whose k indices are the even and the odd byte pairs of both operands.
#if __CUDA_ARCH__ >= 900 && __CUDA_ARCH__ < 1200
constexpr int kFp8Words = 2;
#else
constexpr int kFp8Words = 1;
#endif
template <int kRegisters>
struct Fp8Fragment {
  u32 r[kFp8Words][kRegisters];
};
template <int kRegisters>
__device__ __forceinline__ void unpack_fp8(const u32 (&packed)[kRegisters],
                                           Fp8Fragment<kRegisters>& fragment) {
#pragma unroll
  for (int i = 0; i < kRegisters; ++i) {
#if __CUDA_ARCH__ >= 900 && __CUDA_ARCH__ < 1200
    asm("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %2;\n"
        "cvt.rn.f16x2.e4m3x2 %0, low;\ncvt.rn.f16x2.e4m3x2 %1, high;\n}\n"
        : "=r"(fragment.r[0][i]), "=r"(fragment.r[1][i])
        : "r"(packed[i]));
#else
    fragment.r[0][i] = packed[i];
#endif
  }
}
// D[16,8] += A[16,32] B[32,8].
__device__ __forceinline__ void mma_fp8(float (&d)[4], const Fp8Fragment<4>& a,
                                        const Fp8Fragment<2>& b) {
#pragma unroll
  for (int i = 0; i < kFp8Words; ++i) {
#if __CUDA_ARCH__ >= 900 && __CUDA_ARCH__ < 1200
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a.r[i][0]), "r"(a.r[i][1]), "r"(a.r[i][2]), "r"(a.r[i][3]), "r"(b.r[i][0]),
          "r"(b.r[i][1]));
#elif __CUDA_ARCH__ >= 890
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a.r[i][0]), "r"(a.r[i][1]), "r"(a.r[i][2]), "r"(a.r[i][3]), "r"(b.r[i][0]),
          "r"(b.r[i][1]));
#endif
  }
}

// Adds two bf16 to those at `global`, rounding each sum, in no fixed order. sm_90 and later.
__device__ __forceinline__ void add_two_bf16(void* global, u32 values) {
  asm volatile("red.relaxed.gpu.global.add.noftz.bf16x2 [%0], %1;\n" ::"l"(global), "r"(values)
               : "memory");
}

// Programmatic dependent launch (sm_90 and later; nothing before). After the wait, everything the
// preceding kernel of the stream wrote is visible.
__device__ __forceinline__ void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;\n" ::: "memory");
#endif
}
__device__ __forceinline__ void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
#endif
}

// What other multiprocessors may just have written: L1 is not looked at.
__device__ __forceinline__ int4 load_past_l1(const int4* address) {
  int4 v;
  asm volatile("ld.global.cg.v4.s32 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(address)
               : "memory");
  return v;
}
__device__ __forceinline__ int load_past_l1(const int* address) {
  int v;
  asm volatile("ld.global.cg.s32 %0, [%1];\n" : "=r"(v) : "l"(address) : "memory");
  return v;
}

__device__ __forceinline__ float load_past_l1(const float* address) {
  float v;
  asm volatile("ld.global.cg.f32 %0, [%1];\n" : "=f"(v) : "l"(address) : "memory");
  return v;
}

// bf16 is the upper half of an fp32; rounding to nearest even is one instruction since sm_80.
__device__ __forceinline__ u32 pack_bf16(float low, float high) {
  u32 packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
__device__ __forceinline__ float bf16_low(u32 packed) {
  return __uint_as_float(packed << 16);
}
__device__ __forceinline__ float bf16_high(u32 packed) {
  return __uint_as_float(packed & 0xffff0000u);
}
// Two floats -> two e4m3 bytes, rounded to nearest even, saturated to +-448.
__device__ __forceinline__ u16 pack_e4m3(float low, float high) {
  u16 packed = 0;
#if __CUDA_ARCH__ >= 890
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;\n" : "=h"(packed) : "f"(high), "f"(low));
#endif
  return packed;
}

// x * sigmoid(x). The fast exponential's and division's relative errors (2 ulp each) are far below
// bf16's; beyond 2^126, where the fast division gives 0, so is the result.
__device__ __forceinline__ float silu(float x) {
  return __fdividef(x, 1.0f + __expf(-x));
}

}  // namespace moetune
