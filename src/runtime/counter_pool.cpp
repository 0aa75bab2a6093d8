#include "runtime/counter_pool.hpp"

namespace moetune {
namespace {

constexpr std::int64_t kMaxCounters = 32768;  // 1 MB

}  // namespace

CounterPool::CounterPool() : memory_(kMaxCounters * kBytes) {
  check_cuda(cudaMemset(memory_.get(), 0, memory_.size()), "cudaMemset");
  check_cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
}

void* CounterPool::find(cudaStream_t stream, const std::string& name) {
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  check_cuda(cudaStreamIsCapturing(stream, &capture), "cudaStreamIsCapturing");
  const bool is_captured = capture == cudaStreamCaptureStatusActive;
  unsigned long long id = 0;  // of streams, never used again: handles are
  if (!is_captured) check_cuda(cudaStreamGetId(stream, &id), "cudaStreamGetId");
  const std::scoped_lock lock(mutex_);
  const auto take = [&]() -> void* {
    if (num_taken_ == kMaxCounters) return nullptr;
    return memory_.get<char>() + kBytes * num_taken_++;
  };
  if (is_captured) return take();
  const auto [found, is_new] = of_streams_.try_emplace({id, name}, nullptr);
  if (is_new) found->second = take();
  return found->second;
}

}  // namespace moetune
