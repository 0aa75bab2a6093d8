// The judge's answer for a batch: slow fp32 kernels of their own (kernels/reference).
#pragma once

#include "lab/layer.hpp"

namespace moetune {

// Computes batch.reference[fp8] for routing 0 unless it is there already. fp8: x and the
// activation are quantised as the dtype says, weights are the quantised ones.
void make_reference(Layer& layer, TokenBatch& batch, bool fp8);

}  // namespace moetune
