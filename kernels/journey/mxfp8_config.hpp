// The MXFP8 GEMM's configuration: the portable kernel's, whose e4m3 rows and warp tiles it shares,
// with other scales. Compiled by the host compiler and by NVRTC.
#pragma once

#include "common/params.hpp"
#include "portable/config.hpp"

namespace moetune {

constexpr int kMxBlockK = 32;            // elements of K that share an e8m0 scale
constexpr int kMxWordK = 4 * kMxBlockK;  // whose scales are one 32-bit word: what is loaded at once

// Bytes from a row's scales to the next row's: whole words, padded with zeros.
constexpr int mx_scale_pitch(int size_k) {
  return (size_k + kMxWordK - 1) / kMxWordK * 4;
}

// Shared memory, bytes: per stage the A and B tiles and their scales, then the tile's rows.
constexpr int mx_stage_bytes(const GemmConfig& c) {
  return (c.block_m + c.block_n) * (c.block_k + c.block_k / kMxBlockK);
}
constexpr int mx_smem_bytes(const GemmConfig& c) {
  return c.num_stages * mx_stage_bytes(c) + c.block_m * 4;
}

struct Mxfp8Params {
  GemmParams gemm;               // its fp32 scales are not used
  const unsigned char* a_scale;  // e8m0 [rows, mx_scale_pitch(size_k)]
  const unsigned char* w_scale;  // e8m0 [experts, size_n, mx_scale_pitch(size_k)]
};

}  // namespace moetune
