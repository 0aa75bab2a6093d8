#include "cuda/tensor_map.hpp"

#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include "core/error.hpp"
#include "cuda/device.hpp"

namespace moetune {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

// From the driver at run time, so that the program starts without one.
Encode encoder() {
  static const Encode found = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result{};
    check_cuda(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                                cudaEnableDefault, &result),
               "cuTensorMapEncodeTiled");
    if (result != cudaDriverEntryPointSuccess) {
      throw Error(ErrorKind::device, "the GPU driver has no cuTensorMapEncodeTiled; update it");
    }
    return reinterpret_cast<Encode>(function);
  }();
  return found;
}

}  // namespace

TensorMap::TensorMap(const void* data, std::int64_t rows, std::int64_t columns, std::int64_t pitch,
                     std::int64_t element_bytes, int box_rows, int promotion) {
  constexpr cuuint32_t kBoxBytes = 128;
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(pitch * element_bytes)};
  const cuuint32_t box[] = {kBoxBytes / static_cast<cuuint32_t>(element_bytes),
                            static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[] = {1, 1};
  const CUresult result = encoder()(
      &value, element_bytes == 1 ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
      2, const_cast<void*>(data), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      CU_TENSOR_MAP_SWIZZLE_128B,
      promotion == 128 ? CU_TENSOR_MAP_L2_PROMOTION_L2_128B : CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    throw Error(ErrorKind::device,
                fmt::format("a {}x{} matrix in boxes of {} rows has no tensor map (CUDA error {})",
                            rows, columns, box_rows, static_cast<int>(result)));
  }
}

}  // namespace moetune
