// The timing protocol on a GPU: replays of a CUDA graph that holds one call per routing.
#pragma once

#include <functional>
#include <optional>

#include "cuda/device.hpp"
#include "measure/sampling.hpp"

namespace moetune {

struct GraphTiming {
  Timing timing;
  bool stopped = false;  // gave up early; the timing then has one sample
  double busy_us = 0;    // that the GPU was at it, warm-ups included
};

// `read_clock` may be empty. It is called while an untimed replay keeps the GPU under load: a read
// takes up to milliseconds, in which an idle GPU's clock would rise.
GraphTiming time_graph(const Graph& graph, const Stream& stream, const TimingOptions& options,
                       const std::function<std::optional<ClockReading>()>& read_clock);
// Without a clock check. `stopped` is set when it gave up early.
Timing time_graph(const Graph& graph, const Stream& stream, const TimingOptions& options,
                  bool& stopped);

}  // namespace moetune
