// Runs a layer's program on the caller's tensors and stream: the only launch path.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <vector>

#include "program/program.hpp"
#include "runtime/kernel_loader.hpp"

namespace moetune {

// Device address of each tensor, by TensorId; null for those of 0 bytes.
using Bindings = std::array<void*, kMaxTensors>;

class Executor {
 public:
  // Loads the program's kernels: throws as KernelLoader::load() does. `loader` must outlive this.
  Executor(LayerProgram program, KernelLoader& loader);

  const LayerProgram& program() const { return program_; }
  // Enqueue the setup or a call; they allocate nothing, wait for nothing and may be captured. May
  // be called from several threads. Throw Error(device) naming the step when a launch is refused.
  void set_up(const Bindings& bindings, cudaStream_t stream) const;
  void run(const Bindings& bindings, cudaStream_t stream) const;

 private:
  LayerProgram program_;
  std::vector<cudaKernel_t> setup_kernels_, kernels_;
};

}  // namespace moetune
