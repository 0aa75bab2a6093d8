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
  // The legacy default stream is one, and cannot be captured.
  const bool is_default = stream == nullptr || stream == cudaStreamLegacy;
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  if (!is_default) check_cuda(cudaStreamIsCapturing(stream, &capture), "cudaStreamIsCapturing");
  const bool is_captured = capture == cudaStreamCaptureStatusActive;
  unsigned long long id = ~0ULL;  // of streams, never used again: handles are
  if (!is_default && !is_captured) check_cuda(cudaStreamGetId(stream, &id), "cudaStreamGetId");
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
