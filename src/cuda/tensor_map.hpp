// Descriptions of matrices for Hopper's copy engine (TMA).
#pragma once

#include <cuda.h>

#include <cstdint>

namespace moetune {

// A row-major matrix [rows, columns], rows `pitch` elements apart, read in boxes of `box_rows` rows
// by 128 bytes, swizzled over 128 bytes; what lies outside the matrix reads as zeros. The pitch
// must be a multiple of 16 bytes, box_rows at most 256. `promotion`: bytes that L2 fetches for what
// is asked, 128 or 256. Source: CUDA driver API, cuTensorMapEncodeTiled.
struct TensorMap {
  TensorMap() = default;
  // Throws Error(device) when the driver refuses it.
  TensorMap(const void* data, std::int64_t rows, std::int64_t columns, std::int64_t pitch,
            std::int64_t element_bytes, int box_rows, int promotion);
  CUtensorMap value{};
};

}  // namespace moetune
