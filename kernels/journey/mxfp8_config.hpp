// The MXFP8 GEMM's configuration: host value and template argument at once. Compiled by the host
// compiler and by NVRTC.
#pragma once

#include "common/params.hpp"

namespace moetune {

constexpr int kMxBlockK = 32;            // elements of K that share an e8m0 scale
constexpr int kMxWordK = 4 * kMxBlockK;  // whose scales are one 32-bit word, loaded at once

// Every field is written at every use: an omitted one would silently be 0.
struct Mxfp8Config {
  int block_m, block_n, block_k;  // tile: rows, weight rows, K elements
  int num_warps, num_stages;
  int tensor_memory;  // 1: mxfp8_tcgen05.cu, for sm_100; 0: mxfp8_gemm.cu
  Output output;      // bf16; swiglu; partial: fp32, of all of K
  int size_n;         // weight rows an expert has
  int size_k;         // a multiple of 32
  int top_k;          // rows are gathered, row = slot / top_k; 0: rows lie packed
};

constexpr int num_threads(const Mxfp8Config& c) {
  return c.num_warps * 32;
}
// fp32 sums a thread holds.
constexpr int accumulators(const Mxfp8Config& c) {
  return c.block_m * c.block_n / num_threads(c);
}
// Warps along M; the rest lie along N. The split with the most nearly square warp tile among those
// whose warp tiles are multiples of 16x16; 0 when there is none.
constexpr int warps_m(const Mxfp8Config& c) {
  int best = 0;
  int best_cost = 0;
  for (int m = 1; m <= c.num_warps; m *= 2) {
    const int n = c.num_warps / m;
    if (c.block_m % (16 * m) != 0 || c.block_n % (16 * n) != 0) continue;
    const int cost = c.block_m / m + c.block_n / n;
    if (best == 0 || cost < best_cost) {
      best = m;
      best_cost = cost;
    }
  }
  return best;
}

// Bytes from a row's scales to the next row's: whole words, padded with zeros.
constexpr int mx_scale_pitch(int size_k) {
  return (size_k + kMxWordK - 1) / kMxWordK * 4;
}

// Words of scales, a stage. For tensor memory they lie as its copies take them: in blocks of 128
// rows, A's and B's apart.
constexpr int mx_scale_words(const Mxfp8Config& c) {
  if (c.tensor_memory != 0) return c.block_m + (c.block_n + 127) / 128 * 128;
  return (c.block_m + c.block_n) * (c.block_k / kMxWordK);
}
// Where word `item` lies, counted by tile rows (A's first) and then by K.
constexpr int mx_scale_place(const Mxfp8Config& c, int item) {
  if (c.tensor_memory == 0) return item;
  return item / 128 * 128 + item % 32 * 4 + item % 128 / 32;
}

// Shared memory, bytes: per stage the A and B tiles and their scales, then the tile's rows; for
// tensor memory also a barrier a stage, an address, and room to align the stages to kMxAlignment.
constexpr int kMxAlignment = 1024;
constexpr int mx_stage_bytes(const Mxfp8Config& c) {
  const int bytes = (c.block_m + c.block_n) * c.block_k + mx_scale_words(c) * 4;
  if (c.tensor_memory == 0) return bytes;
  return (bytes + kMxAlignment - 1) / kMxAlignment * kMxAlignment;
}
constexpr int mx_smem_bytes(const Mxfp8Config& c) {
  const int bytes = c.num_stages * mx_stage_bytes(c) + c.block_m * 4;
  return c.tensor_memory == 0 ? bytes : bytes + kMxAlignment + 8 * c.num_stages + 16;
}

// Columns of tensor memory: the sums, then each stage's scales, A's and B's; a power of two.
constexpr int mx_scale_columns(const Mxfp8Config& c) {
  return mx_scale_words(c) / 32;
}
constexpr int mx_tensor_columns(const Mxfp8Config& c) {
  int columns = 32;
  while (columns < c.block_n + c.num_stages * mx_scale_columns(c)) columns *= 2;
  return columns;
}

struct Mxfp8Params {
  GemmParams gemm;               // its fp32 scales are not used
  const unsigned char* a_scale;  // e8m0 [rows, mx_scale_pitch(size_k)]
  const unsigned char* w_scale;  // e8m0 [experts, size_n, mx_scale_pitch(size_k)]
};

}  // namespace moetune
