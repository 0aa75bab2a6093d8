// Move-only owners of CUDA runtime objects, and the GPUs of this machine.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "core/gpu.hpp"

namespace moetune {

// The GPUs that can run something; empty without a driver. Never throws.
std::vector<Gpu> list_gpus();
// CUDA's reason when there is none; "" when there is one.
std::string why_no_gpu();

// Throws Error(device) naming `what` and CUDA's reason.
void check_cuda(cudaError_t status, const char* what);

class Stream {
 public:
  Stream();
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  cudaStream_t get() const { return stream_; }
  void synchronize() const;

 private:
  cudaStream_t stream_ = nullptr;
};

class Event {
 public:
  Event();
  Event(Event&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
  Event& operator=(Event&&) = delete;
  ~Event();
  void record(const Stream& stream) const;
  cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};
// Microseconds between two recorded events; waits for the second.
double elapsed_us(const Event& begin, const Event& end);

// Device memory. Bytes are not initialised.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::size_t bytes);
  Buffer(Buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept;
  ~Buffer();
  template <typename T = void>
  T* get() const {
    return static_cast<T*>(data_);
  }
  std::size_t size() const { return bytes_; }
  // Grows, losing the contents, when smaller than `bytes`.
  void reserve(std::size_t bytes);
  void upload(const void* source, std::size_t bytes) const;
  void download(void* target, std::size_t bytes) const;

 private:
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

// An executable graph captured from a stream.
class Graph {
 public:
  // Captures what `record` enqueues on `stream`.
  template <typename Record>
  Graph(const Stream& stream, Record&& record) {
    begin(stream);
    try {
      record();
    } catch (...) {
      abandon(stream);
      throw;
    }
    end(stream);
  }
  ~Graph();
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  void launch(const Stream& stream) const;

 private:
  static void begin(const Stream& stream);
  static void abandon(const Stream& stream);
  void end(const Stream& stream);
  cudaGraphExec_t exec_ = nullptr;
};

}  // namespace moetune
