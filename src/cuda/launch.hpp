// Loads cubins and launches their kernels.
#pragma once

#include <cuda_runtime_api.h>

#include <map>
#include <string>
#include <string_view>

#include "cuda/device.hpp"
#include "jit/compiler.hpp"

namespace moetune {

struct LaunchShape {
  dim3 grid;
  unsigned threads = 0;
  unsigned smem_bytes = 0;
  // Programmatic dependent launch: the kernel may start before its predecessor has ended and
  // waits for it itself (sm_90 and later; the kernel must call griddepcontrol.wait).
  bool overlap = false;
  unsigned cluster = 1;  // blocks in a cluster (sm_90 and later)
};

// The kernels of one cubin, loaded on the current device.
class Module {
 public:
  explicit Module(const Cubin& cubin);
  ~Module();
  Module(const Module&) = delete;
  Module& operator=(const Module&) = delete;
  // By the expression it was compiled from; throws Error(input) when the cubin lacks it.
  cudaKernel_t kernel(std::string_view expression) const;

 private:
  cudaLibrary_t library_ = nullptr;
  std::map<std::string, cudaKernel_t, std::less<>> kernels_;
};

// Sets a kernel's dynamic shared memory limit; once, before its first launch. Small ones need it
// too where static shared memory makes the sum more than 48 KB.
void allow_smem(cudaKernel_t kernel, unsigned bytes);

// Enqueues; throws Error(device) when the launch is refused.
void launch(cudaStream_t stream, cudaKernel_t kernel, const LaunchShape& shape, void** arguments);

template <typename... Arguments>
void launch(const Stream& stream, cudaKernel_t kernel, const LaunchShape& shape,
            Arguments... arguments) {
  void* pointers[] = {static_cast<void*>(&arguments)...};
  launch(stream.get(), kernel, shape, pointers);
}

}  // namespace moetune
