// The one-launch variant's host half, for the layer, tests and the registry.
#pragma once

#include <memory>

#include "kernels/decode/config.hpp"
#include "kernels/variant.hpp"

namespace moetune::decode {

std::unique_ptr<Variant> make_decode();
// The template argument of a point's kernel.
Config config_of(const Problem& problem, const Point& point);

}  // namespace moetune::decode
