// Counters in device memory for kernels that need them at 0 at first and keep them between calls.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "cuda/device.hpp"

namespace moetune {

// Calls on one stream follow each other and share a counter; a call that is captured gets one that
// stays its graph's own, so that graphs may be replayed beside other calls.
class CounterPool {
 public:
  static constexpr std::int64_t kBytes = 32;  // of a counter

  // On the current device.
  CounterPool();

  // Null when all are given away: the caller then clears one of its own in front of the launch.
  // Calls of other names have other counters. May be called from several threads.
  void* find(cudaStream_t stream, const std::string& name);

 private:
  std::mutex mutex_;
  Buffer memory_;
  std::int64_t num_taken_ = 0;
  std::map<std::pair<unsigned long long, std::string>, void*> of_streams_;
};

}  // namespace moetune
