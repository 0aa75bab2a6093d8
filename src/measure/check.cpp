#include "measure/check.hpp"

#include <fmt/format.h>

#include <bit>
#include <cmath>
#include <cstddef>
#include <limits>

namespace moetune {

Tolerance tolerance(bool fp8) {
  // The element bounds follow from the formats: bf16 keeps 8 bits and an output is the sum of
  // many rounded terms; an e4m3 value that rounds the other way moves by up to 1/8.
  return fp8 ? Tolerance{0.025, 0.25} : Tolerance{0.006, 0.06};
}

std::string judge_deviation(const Deviation& deviation, const Tolerance& tolerance) {
  if (deviation.num_not_finite > 0) {
    return fmt::format("{} elements are not finite", deviation.num_not_finite);
  }
  if (!(deviation.rel_err <= tolerance.rel_err)) {
    return fmt::format("relative error {:.5f} exceeds {}", deviation.rel_err, tolerance.rel_err);
  }
  if (!(deviation.max_err <= tolerance.max_err)) {
    return fmt::format("an element is off by {:.4f} of its size, more than {}", deviation.max_err,
                       tolerance.max_err);
  }
  return "";
}

Deviation compare(const Layer& layer, const Matrix& got, const int* positions, const float* want,
                  std::int64_t rows, std::int64_t columns) {
  struct Result {
    double sums[2];
    unsigned long long not_finite;
    unsigned max_error;
    unsigned padding;
  } result{};
  const Buffer device(sizeof(Result));
  check_cuda(cudaMemsetAsync(device.get(), 0, sizeof(Result), layer.stream().get()), "memset");
  auto* const base = device.get<char>();
  launch(layer.stream(), layer.judge().kernel("moetune_reference::compare"),
         LaunchShape{dim3(static_cast<unsigned>(rows)), 256}, got, positions, want,
         static_cast<int>(columns), static_cast<void*>(base),
         static_cast<void*>(base + offsetof(Result, max_error)),
         static_cast<void*>(base + offsetof(Result, not_finite)));
  check_cuda(cudaMemcpyAsync(&result, device.get(), sizeof(Result), cudaMemcpyDeviceToHost,
                             layer.stream().get()),
             "copy from the GPU");
  layer.stream().synchronize();
  Deviation deviation;
  deviation.num_not_finite = result.not_finite;
  deviation.rel_err = result.sums[1] > 0 ? std::sqrt(result.sums[0] / result.sums[1])
                                         : std::numeric_limits<double>::quiet_NaN();
  deviation.max_err = static_cast<double>(std::bit_cast<float>(result.max_error));
  return deviation;
}

}  // namespace moetune
