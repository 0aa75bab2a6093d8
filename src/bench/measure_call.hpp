// One way to run a layer: checked against the reference, then timed.
#pragma once

#include <functional>

#include "core/trial.hpp"
#include "lab/layer.hpp"
#include "measure/check.hpp"

namespace moetune {

inline constexpr int kBenchRoutings = 8;  // of a batch, and calls in a graph

// How often something that is launched on a stream is timed, from what one call took: 20 samples of
// a call a routing, or fewer, or single calls, so as to stay within the budget; at least one.
struct StreamSamples {
  int calls = 0;  // a sample
  int num_samples = 0;
};
StreamSamples plan_samples(double call_s, double budget_s, int num_routings);

struct LayerCall {
  std::function<void(int)> enqueue;  // one call for a routing, 0 to kBenchRoutings - 1
  std::function<Matrix()> result;    // its output, bf16 [num_tokens, H]
  bool fp8 = false;                  // which reference it is compared with
  bool graph = true;                 // it can be captured; else it is timed as launches
  double budget_s = 10;              // for timing launches
};

struct MeasuredCall {
  Deviation deviation;
  Timing timing;
  int calls_a_sample = 0;
};

// `batch` has kBenchRoutings routings and its reference made for call.fp8; everything the call
// needs is prepared, its output poisoned. Throws Error(failed) when the result is wrong.
MeasuredCall measure_call(const Layer& layer, const TokenBatch& batch, const LayerCall& call);

}  // namespace moetune
