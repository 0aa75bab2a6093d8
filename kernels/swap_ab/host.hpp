// The swapped variant's host half, for tests and the registry.
#pragma once

#include <memory>

#include "kernels/swap_ab/config.hpp"
#include "kernels/variant.hpp"

namespace moetune::swap_ab {

std::unique_ptr<Variant> make_swap_ab();
// The template argument of a point's kernel.
Config config_of(const Problem& problem, Stage stage, const Point& point);

}  // namespace moetune::swap_ab
