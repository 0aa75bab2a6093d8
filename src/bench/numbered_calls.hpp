// A benchmark's calls, numbered. The same command run under a profiler makes the same calls in the
// same order, so that the numbers say which counters are of which time.
#pragma once

#include <string_view>

#include "bench/measure_call.hpp"

namespace moetune {

// The kernel that a profiler sees before each number's call; nothing else that it sees has its
// name.
inline constexpr std::string_view kCallMarker = "fill_normal_bf16";
// Whose call the profiler sees, after one of routing 0 that it does not.
inline constexpr int kProfiledRouting = 1;

class NumberedCalls {
 public:
  explicit NumberedCalls(bool profiling) : profiling_(profiling) {}

  // Calls are not checked and timed, but made for a profiler that runs this process.
  bool profiling() const { return profiling_; }
  int count() const { return count_; }
  // Routings that a batch needs; the profiler's are the first of the benchmark's.
  int num_routings() const { return profiling_ ? kProfiledRouting + 1 : kBenchRoutings; }
  // The number of the call that comes next, if it does.
  int begin(const Layer& layer);
  // measure_call(); for a profiler two plain calls, in place of a graph's, of which it sees the
  // second. Nothing has a time then. Throws as measure_call() does.
  MeasuredCall measure(const Layer& layer, const TokenBatch& batch, const LayerCall& call) const;

 private:
  bool profiling_;
  int count_ = 0;
};

}  // namespace moetune
