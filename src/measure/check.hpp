// Is a kernel's result right? Every element is compared with the judge's, on the device.
#pragma once

#include <cstdint>
#include <string>

#include "lab/layer.hpp"

namespace moetune {

struct Deviation {
  double rel_err = 0;  // ||got - want|| / ||want|| over all elements
  double max_err = 0;  // worst element: |got - want| / (|want| + rms(its row of want))
  std::uint64_t num_not_finite = 0;
};

// What a result may deviate by. rel_err is the documented bound; max_err catches a few wrong
// elements that vanish in the norm of many right ones.
struct Tolerance {
  double rel_err = 0;
  double max_err = 0;
};
Tolerance tolerance(bool fp8);

// "" when within; else what is wrong, with numbers. NaN never passes.
std::string judge_deviation(const Deviation& deviation, const Tolerance& tolerance);

// Compares `got` with fp32 `want`, both [rows, columns]: row r of `want` is row positions[r] of
// `got`, or r when there are no positions. Waits for the stream.
Deviation compare(const Layer& layer, const Matrix& got, const int* positions, const float* want,
                  std::int64_t rows, std::int64_t columns);

}  // namespace moetune
