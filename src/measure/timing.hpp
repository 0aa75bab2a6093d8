// The timing protocol: replays of a CUDA graph that holds one call per routing.
#pragma once

#include "core/trial.hpp"
#include "cuda/device.hpp"

namespace moetune {

struct TimingOptions {
  int num_calls = 8;  // calls in the graph: a sample is divided by it
  int num_warmups = 3;
  int num_samples = 20;
  double stop_above_us = 0;  // give up after the first sample slower than this; 0: never
};

// Replays the graph. `stopped` is set when it gave up early; the timing then has one sample.
Timing time_graph(const Graph& graph, const Stream& stream, const TimingOptions& options,
                  bool& stopped);

}  // namespace moetune
