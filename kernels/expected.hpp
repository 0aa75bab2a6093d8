// What a routing is expected to give, for rules and time models.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/problem.hpp"

namespace moetune {

inline std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

// How many experts get any rows, and rows each of them gets on average.
inline double active_experts(const Problem& problem) {
  return std::max(1.0, expected_active_experts(problem.shape, problem.num_tokens));
}
inline double mean_rows(const Problem& problem) {
  return static_cast<double>(problem.num_tokens * problem.shape.top_k) / active_experts(problem);
}

}  // namespace moetune
