#include "core/objective.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "core/error.hpp"

namespace moetune {
namespace {

// In the order of the enumerators.
constexpr std::array<std::string_view, 4> kNames = {"time", "error", "energy", "memory"};

}  // namespace

std::string_view to_string(Objective objective) {
  return kNames.at(static_cast<std::size_t>(objective));
}

Objective parse_objective(std::string_view text) {
  for (std::size_t i = 0; i < kNames.size(); ++i)
    if (kNames[i] == text) return static_cast<Objective>(i);
  throw Error(ErrorKind::usage,
              fmt::format("unknown objective '{}'; there are {}", text, fmt::join(kNames, ", ")));
}

std::optional<double> cost(Objective objective, const Trial& trial) {
  if (trial.status != TrialStatus::ok) return {};
  double value = 0;
  switch (objective) {
    case Objective::time:
      value = trial.timing.median_us;
      break;
    case Objective::error:
      value = std::max(trial.rel_err, trial.quantisation_err);
      break;
    case Objective::energy:
      value = trial.energy_mj;
      break;
    case Objective::memory:
      value = static_cast<double>(trial.workspace_bytes);
      break;
  }
  return std::isfinite(value) && value > 0 ? std::optional(value) : std::nullopt;
}

}  // namespace moetune
