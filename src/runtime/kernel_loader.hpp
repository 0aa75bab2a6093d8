// Kernels compiled and loaded on the current device, each once.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>

#include "cuda/launch.hpp"
#include "jit/compiler.hpp"

namespace moetune {

class KernelLoader {
 public:
  // `compiler` must outlive this. What is loaded stays so until the end.
  explicit KernelLoader(Compiler& compiler) : compiler_(compiler) {}

  Compiler& compiler() const { return compiler_; }
  // A kernel that may be launched with `smem_bytes` of dynamic shared memory. Compiles where
  // needed, loads at the first call. Throws Error(failed) naming the file and the compiler's
  // reason, Error(device) where it cannot be loaded. May be called from several threads.
  cudaKernel_t load(const KernelSource& source, std::string_view expression, unsigned smem_bytes);

 private:
  Compiler& compiler_;
  std::mutex mutex_;  // guards what follows
  std::map<std::string, std::unique_ptr<Module>> modules_;
  std::map<cudaKernel_t, unsigned> smem_bytes_;  // that a kernel is allowed so far
};

}  // namespace moetune
