// How much memory a call needs beside weights, inputs and the list of rows.
#pragma once

#include <cstdint>

#include "core/problem.hpp"
#include "core/trial.hpp"

namespace moetune {

// Bytes of the intermediate results and the output of one call of `stage`: what Layer::prepare
// reserves, and in fp8 also the quantised input, which belongs to its batch. Throws Error(input)
// for a plan that lacks one of the stage's steps or names an unknown variant.
std::int64_t workspace_bytes(const Problem& problem, Stage stage, const Plan& plan);

}  // namespace moetune
