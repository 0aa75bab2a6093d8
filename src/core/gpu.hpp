// What a kernel's legality and a time model need to know about a GPU. Plain values, no CUDA.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace moetune {

struct Gpu {
  std::string name;  // as the driver reports it: "NVIDIA H200"
  int cc_major = 0;
  int cc_minor = 0;
  int num_sms = 0;
  int smem_per_block = 0;  // bytes, opt-in maximum
  int smem_per_sm = 0;     // bytes
  std::int64_t l2_bytes = 0;
  std::int64_t memory_bytes = 0;
  double read_gbps = 0;    // achievable read bandwidth, GB/s; 0 when unknown
  double bf16_tflops = 0;  // achievable dense matrix rates; 0 when unknown
  double fp8_tflops = 0;
  std::string driver;    // empty for an offline GPU
  bool offline = false;  // nothing can run: times are recorded or predicted
  int ordinal = -1;      // CUDA's number of a GPU of this machine

  int cc() const { return cc_major * 10 + cc_minor; }
};

// NVRTC's --gpu-architecture for real code: "sm_80", "sm_89", "sm_90a", "sm_100a", "sm_120a".
std::string arch_name(const Gpu& gpu);
// "NVIDIA H200" -> "NVIDIA_H200": folder and file names.
std::string file_name(const Gpu& gpu);

// GPUs whose limits are known, for offline use: a100, rtx4090, l40s, h100, h200, b200, rtx5090, ...
const std::vector<std::pair<std::string, Gpu>>& known_gpus();
// By short name or by the driver's name; throws Error(usage) naming the nearest known one.
Gpu known_gpu(std::string_view name);
// A representative GPU for an architecture such as "sm_89" (for `compile`); throws Error(usage).
Gpu gpu_for_arch(std::string_view arch);

}  // namespace moetune
