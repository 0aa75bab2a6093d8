// Compilations in a process beside this one. NVRTC holds locks: on 16 cores 8 threads of a process
// compile 17.5 kernels a second, 16 threads 24, and 16 processes 35 (CUDA 13.0, see
// results/NVIDIA_H200/notes.md). Private to the module, but for serve_compilations().
#pragma once

#include <atomic>
#include <cstdint>
#include <future>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "core/child_process.hpp"
#include "jit/compiler.hpp"

namespace moetune {

class CompileWorker {
 public:
  // Starts `program compile-worker --threads N`. Throws Error(device).
  CompileWorker(const std::string& program, int num_threads);
  ~CompileWorker();
  CompileWorker(const CompileWorker&) = delete;
  CompileWorker& operator=(const CompileWorker&) = delete;

  // compile() over there; several threads may wait at once. Nothing when the process is gone.
  std::optional<Cubin> compile(const KernelSource& source, const std::string& arch);
  std::int64_t peak_host_bytes() const { return peak_host_bytes_; }

 private:
  void receive();

  ChildProcess child_;
  std::mutex mutex_;  // guards the next three, and sending
  std::map<std::uint64_t, std::promise<std::optional<Cubin>>> waiting_;
  std::uint64_t next_id_ = 0;
  bool is_gone_ = false;
  std::atomic<std::int64_t> peak_host_bytes_ = 0;
  std::jthread receiver_;  // last: joined before anything it uses goes away
};

// The other end: compiles what comes through `socket` until it closes, then ends the process.
// Throws Error(usage) when there is no such socket.
[[noreturn]] void serve_compilations(int socket, int num_threads);

}  // namespace moetune
