#include "core/gpu.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>

#include "core/error.hpp"
#include "core/text.hpp"

namespace moetune {
namespace {

constexpr std::int64_t kMiB = std::int64_t{1} << 20;

// Limits by compute capability: table "Technical Specifications" of the CUDA programming guide,
// less the 1 KiB a block that the driver keeps.
Gpu limits(std::string name, int cc, int num_sms, std::int64_t l2_mib, std::int64_t memory_mib) {
  Gpu gpu;
  gpu.name = std::move(name);
  gpu.cc_major = cc / 10;
  gpu.cc_minor = cc % 10;
  gpu.num_sms = num_sms;
  const int smem_kib = cc == 80 ? 164 : cc == 90 || cc == 100 ? 228 : 100;
  gpu.smem_per_sm = smem_kib * 1024;
  gpu.smem_per_block = (smem_kib - 1) * 1024;
  gpu.l2_bytes = l2_mib * kMiB;
  gpu.memory_bytes = memory_mib * kMiB;
  gpu.offline = true;
  return gpu;
}

Gpu measured_rates(Gpu gpu, double read_gbps, double bf16_tflops, double fp8_tflops) {
  gpu.read_gbps = read_gbps;
  gpu.bf16_tflops = bf16_tflops;
  gpu.fp8_tflops = fp8_tflops;
  return gpu;
}

// Takes the data sheet's peaks (dense, fp32 accumulation). Not measured: scaled by what large
// copies and matrix products usually reach.
Gpu datasheet_rates(Gpu gpu, double read_gbps, double bf16_tflops, double fp8_tflops) {
  return measured_rates(std::move(gpu), 0.92 * read_gbps, 0.8 * bf16_tflops, 0.75 * fp8_tflops);
}

int parse_arch(std::string_view arch) {
  if (!arch.starts_with("sm_")) return 0;
  arch.remove_prefix(3);
  if (arch.ends_with('a') || arch.ends_with('f')) arch.remove_suffix(1);
  int cc = 0;
  for (const char c : arch) {
    if (c < '0' || c > '9' || cc > 999) return 0;
    cc = cc * 10 + (c - '0');
  }
  return cc;
}

}  // namespace

std::string arch_name(const Gpu& gpu) {
  // From Hopper on, "a" unlocks the instructions of exactly this architecture.
  return fmt::format("sm_{}{}", gpu.cc(), gpu.cc() >= 90 ? "a" : "");
}

std::string file_name(const Gpu& gpu) {
  std::string name = gpu.name;
  std::replace_if(
      name.begin(), name.end(),
      [](char c) { return !std::isalnum(static_cast<unsigned char>(c)) && c != '-' && c != '.'; },
      '_');
  return name;
}

const std::vector<std::pair<std::string, Gpu>>& known_gpus() {
  static const std::vector<std::pair<std::string, Gpu>> gpus = {
      {"a100", datasheet_rates(limits("NVIDIA A100-SXM4-80GB", 80, 108, 40, 81251), 2039, 312, 0)},
      {"l40s", datasheet_rates(limits("NVIDIA L40S", 89, 142, 96, 45589), 864, 362, 733)},
      {"rtx4090",
       datasheet_rates(limits("NVIDIA GeForce RTX 4090", 89, 128, 72, 24217), 1008, 165, 330)},
      {"h100",
       datasheet_rates(limits("NVIDIA H100 80GB HBM3", 90, 132, 50, 81090), 3350, 989, 1979)},
      {"h200", measured_rates(limits("NVIDIA H200", 90, 132, 60, 143156), 4650, 790, 1480)},
      {"b200", datasheet_rates(limits("NVIDIA B200", 100, 148, 126, 182643), 8000, 2250, 4500)},
      {"rtx5090",
       datasheet_rates(limits("NVIDIA GeForce RTX 5090", 120, 170, 96, 32109), 1792, 209, 419)},
  };
  return gpus;
}

Gpu known_gpu(std::string_view name) {
  std::vector<std::string> names;
  for (const auto& [short_name, gpu] : known_gpus()) {
    if (name == short_name || name == gpu.name || name == file_name(gpu)) return gpu;
    names.push_back(short_name);
  }
  const std::string near = nearest(name, names);
  throw Error(ErrorKind::usage,
              fmt::format("unknown GPU '{}'{}; known offline are {}", name,
                          near.empty() ? "" : fmt::format(", did you mean {}?", near),
                          fmt::join(names, ", ")));
}

Gpu gpu_for_arch(std::string_view arch) {
  // The data-centre GPU of an architecture, where there are several.
  const int cc = parse_arch(arch);
  std::vector<std::string> archs;
  const Gpu* found = nullptr;
  for (const auto& [name, gpu] : known_gpus()) {
    if (gpu.cc() == cc && (!found || gpu.memory_bytes > found->memory_bytes)) found = &gpu;
    if (std::find(archs.begin(), archs.end(), arch_name(gpu)) == archs.end())
      archs.push_back(arch_name(gpu));
  }
  if (found) return *found;
  throw Error(ErrorKind::usage,
              fmt::format("unknown architecture '{}'; known are {}", arch, fmt::join(archs, ", ")));
}

}  // namespace moetune
