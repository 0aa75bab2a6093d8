// What NVRTC compiles for one kernel.
#pragma once

#include <string>
#include <vector>

namespace moetune {

// An embedded source file, the template instances wanted, and extra options.
struct KernelSource {
  std::string file;                      // e.g. "portable/moe_gemm.cu"
  std::vector<std::string> expressions;  // e.g. "moe_gemm<GemmConfig{.block_m = 64, ...}>"
  std::vector<std::string> options;      // beside the architecture and the common ones
  bool operator==(const KernelSource&) const = default;
};

}  // namespace moetune
