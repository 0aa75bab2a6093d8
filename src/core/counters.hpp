// What the GPU's counters say of a program's kernels, by NVIDIA's profiler `ncu` (Nsight Compute),
// which runs the program as its child. No CUDA here.
//
// ncu runs one kernel after the other and waits in between: nothing overlaps, and each begins with
// a GPU that has rested, where a benchmark's runs at the clock its power allows (a kernel of some
// milliseconds reaches that limit too). Neither clocks nor caches are touched (--clock-control
// none, --cache-control none), so that a kernel finds in L2 what the one before it left. For the
// same reason the whole program runs again where the metrics take several passes (--replay-mode
// application): to run a kernel again, ncu would first copy the memory that it may write.
#pragma once

#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace moetune {

inline constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();

// One launch. kUnknown where ncu gave no such metric.
struct KernelCounters {
  std::string name;  // of the function, without its arguments: "moe_gemm_sm90"
  double time_us = kUnknown;
  double l2_hits = kUnknown;    // 32-byte sectors that reads looked for in L2 and found; the halves
  double l2_misses = kUnknown;  // of an H100's L2 ask each other, and each look counts
  double dram_read_bytes = kUnknown;
  double dram_write_bytes = kUnknown;
  double tensor_busy_pct = kUnknown;  // of the cycles in which SMs were active
  double sm_mhz = kUnknown;
  double waves = kUnknown;  // of blocks, by what fits the SMs at a time
  double grid = kUnknown;   // blocks
  double l2_hit_rate() const { return l2_hits / (l2_hits + l2_misses); }  // 0..1
};

// Of several kernels, weighted by sectors; kUnknown where none has both counts.
double l2_hit_rate(std::span<const KernelCounters> kernels);

// What `ncu --csv --page raw` printed, with whatever else is between the lines. Numbers may have
// thousands separators, and units prefixes. Empty without a header that begins with "ID".
std::vector<KernelCounters> parse_ncu_csv(std::string_view text);

// The kernels behind each kernel whose name holds `marker`; what is before the first is left out.
std::vector<std::vector<KernelCounters>> split_calls(std::span<const KernelCounters> kernels,
                                                     std::string_view marker);

// `given` unless empty; else the first ncu in the folders of `search_path` (as in PATH), in CUDA
// toolkits below /usr/local and in /opt/nvidia/nsight-compute; "" without one.
std::string find_ncu(const std::string& given, const std::string& search_path);

struct NcuRun {
  std::vector<KernelCounters> kernels;
  std::string missing;  // why there are none, in one sentence with what to do; empty when there are
};

// Runs `program`, which calls cudaProfilerStart around what is wanted, with all of `arguments`. A
// failure is data, never an exception. `ncu` as find_ncu() gives it.
NcuRun run_ncu(const std::string& ncu, const std::string& program,
               const std::vector<std::string>& arguments, int timeout_s);

}  // namespace moetune
