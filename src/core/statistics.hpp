// Percentiles, and means with confidence intervals.
#pragma once

#include <span>

namespace moetune {

// Percentile by linear interpolation; `sorted` is ascending and not empty, 0 <= p <= 100.
double percentile(std::span<const double> sorted, double p);

// A mean and half the width of its 95 % confidence interval: Student's t over the values, which are
// taken as independent. 0 for a single value, which tells nothing of the spread.
struct Interval {
  double mean = 0;
  double half_width = 0;
};
Interval mean_interval(std::span<const double> values);  // not empty

}  // namespace moetune
