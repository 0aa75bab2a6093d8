#include "tune/budget.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "core/error.hpp"

namespace moetune {

Budget parse_budget(std::string_view text) {
  double value = 0;
  const char* end = text.data() + text.size();
  const auto [rest, code] = std::from_chars(text.data(), end, value);
  const std::string_view unit(rest, static_cast<std::size_t>(end - rest));
  const double scale = unit == "s" ? 1 : unit == "m" ? 60 : unit == "h" ? 3600 : 0;
  const bool fits = code == std::errc() && value > 0 && value < 1e15;
  if (fits && scale > 0) return {.seconds = value * scale, .num_trials = 0};
  if (fits && unit.empty() && value == std::floor(value)) {
    return {.seconds = 0, .num_trials = static_cast<std::uint64_t>(value)};
  }
  throw Error(
      ErrorKind::usage,
      fmt::format("--budget {}: give a time such as 90s, 10m or 1.5h, or a number of trials "
                  "such as 500",
                  text));
}

Allowance share(const Budget& budget, double elapsed_s, std::uint64_t num_trials,
                std::uint64_t num_left, bool second_stage) {
  Allowance allowance;
  // A token count's time goes to gemm1, gemm2, and measuring the finalists and layers.
  const double parts = 3.0 * static_cast<double>(num_left) - (second_stage ? 1 : 0);
  if (budget.seconds > 0) {
    allowance.until_s = elapsed_s + std::max(0.0, budget.seconds - elapsed_s) / parts;
  }
  if (budget.num_trials > 0) {
    const std::uint64_t left = budget.num_trials - std::min(budget.num_trials, num_trials);
    allowance.num_trials = left / (2 * num_left - (second_stage ? 1 : 0));
  }
  return allowance;
}

}  // namespace moetune
