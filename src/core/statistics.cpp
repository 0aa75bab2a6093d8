#include "core/statistics.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <numeric>

namespace moetune {
namespace {

// Student's t at 0.975 for 1, 2, ... degrees of freedom; for more than these, the normal's.
constexpr std::array kStudentT{12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306,
                               2.262,  2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
                               2.110,  2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064,
                               2.060,  2.056, 2.052, 2.048, 2.045, 2.042};
constexpr double kNormal = 1.960;

}  // namespace

double percentile(std::span<const double> sorted, double p) {
  const double position = p / 100.0 * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<std::size_t>(position);
  const std::size_t above = std::min(below + 1, sorted.size() - 1);
  const double fraction = position - static_cast<double>(below);
  return sorted[below] + fraction * (sorted[above] - sorted[below]);
}

Interval mean_interval(std::span<const double> values) {
  const auto count = static_cast<double>(values.size());
  Interval interval;
  interval.mean = std::accumulate(values.begin(), values.end(), 0.0) / count;
  if (values.size() < 2) return interval;
  double squares = 0;
  for (const double value : values) squares += (value - interval.mean) * (value - interval.mean);
  const std::size_t freedom = values.size() - 1;
  const double t = freedom <= kStudentT.size() ? kStudentT.at(freedom - 1) : kNormal;
  interval.half_width = t * std::sqrt(squares / static_cast<double>(freedom) / count);
  return interval;
}

}  // namespace moetune
