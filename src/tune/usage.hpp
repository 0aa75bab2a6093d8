// What measuring has used, for a run's record.
#pragma once

#include <cstdint>

namespace moetune {

struct Usage {
  // The GPU was at work on trials, their checks included; offline: the compiler, over all threads.
  double busy_s = 0;
  double compile_s = 0;  // of NVRTC, summed over threads
  // Peak resident memory of the processes other than this one that measure: a sum of peaks.
  std::int64_t peak_host_bytes = 0;
};

}  // namespace moetune
