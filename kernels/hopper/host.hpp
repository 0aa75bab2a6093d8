// The Hopper variant's host half, for tests and the registry.
#pragma once

#include <memory>

#include "kernels/hopper/config.hpp"
#include "kernels/variant.hpp"

namespace moetune {

std::unique_ptr<Variant> make_hopper();
// The template argument of a point's kernel.
HopperConfig hopper_config(const Problem& problem, Stage stage, const Point& point);

}  // namespace moetune
