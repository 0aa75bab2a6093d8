// Which experts each token picks, made on the host from a recorded seed.
#pragma once

#include <cstdint>
#include <vector>

#include "core/problem.hpp"

namespace moetune {

struct RoutingData {
  std::vector<std::int32_t> topk_ids;  // [num_tokens, top_k], distinct within a token
  std::vector<float> topk_weights;     // [num_tokens, top_k], a token's weights sum to 1
};

// Routing number `index` of the problem: the same for the same (problem.routing, shape, num_tokens,
// seed, index). For file routings, index selects where in the trace to start. Throws Error(input)
// naming file and line for a trace that does not fit the shape.
RoutingData make_routing(const Problem& problem, int index);

}  // namespace moetune
