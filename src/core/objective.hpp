// What a search makes small.
#pragma once

#include <optional>
#include <string_view>

#include "core/trial.hpp"

namespace moetune {

enum class Objective { time, error, energy, memory };

std::string_view to_string(Objective objective);
Objective parse_objective(std::string_view text);  // throws Error(usage) listing the names

// What `trial` costs; less is better. time: its median, us. error: what it deviates by from a layer
// in bf16, or where that was not measured from the reference in its own precision. energy: of one
// call, mJ. memory: bytes of intermediate results of one call. Nothing where it was not measured;
// an error and an energy are never predicted.
std::optional<double> cost(Objective objective, const Trial& trial);

}  // namespace moetune
