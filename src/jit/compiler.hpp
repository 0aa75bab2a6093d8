// Compiles kernels at run time with NVRTC, in parallel, through an on-disk cubin cache.
#pragma once

#include <cstdint>
#include <future>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/embedded.hpp"
#include "core/kernel_hashes.hpp"
#include "kernels/variant.hpp"

namespace moetune {

// What a cubin tells without a GPU.
struct Resources {
  int registers = 0;
  int stack_bytes = 0;  // nonzero on every spill
  int static_smem_bytes = 0;
  int max_threads = 0;  // __launch_bounds__; 0 without
};

struct CompiledKernel {
  std::string expression;    // as asked for
  std::string lowered_name;  // the symbol in the cubin
  Resources resources;
};

struct Cubin {
  std::string image;                    // ELF bytes; empty when compilation failed
  std::vector<CompiledKernel> kernels;  // in the order of KernelSource::expressions
  std::string log;                      // NVRTC's log, warnings included
  std::string error;                    // why it failed; empty when it did not
  double compile_ms = 0;                // what NVRTC took, also when it was for an earlier process
  bool from_cache = false;
  bool ok() const { return error.empty(); }
};

// NVRTC's version, "13.0". Throws Error(device) with a remedy when NVRTC cannot be loaded.
std::string nvrtc_version();
// Hex hash over `file` and what it includes, directly or not; "" when `files` has no `file`.
std::string sources_hash(std::string_view file,
                         std::span<const EmbeddedFile> files = embedded_kernels());
// Of each variant whose sources are in `files`, and of the small kernels: part of a table's
// identity. The judge's kernels are in neither, for they take no part in what is timed.
KernelHashes kernel_hashes(std::span<const EmbeddedFile> files = embedded_kernels());

// Compiles now, on this thread, without the cache. Never throws for bad source: see Cubin::error.
// Throws Error(device) when NVRTC cannot be loaded. `files`: where sources and includes come from.
Cubin compile(const KernelSource& source, const std::string& arch,
              std::span<const EmbeddedFile> files = embedded_kernels());

inline constexpr int kThreadsAProcess = 8;

// When a kernel is wanted. Each kind is compiled where nothing of those before it waits: what is
// asked for next, in order; what is asked for in a stage to come, in order; what perhaps nobody
// asks for, the last submitted first and on half of the threads, so that the others take at once
// what comes in.
enum class Urgency { next, later, perhaps };

class Compiler {
 public:
  // `cache_dir` empty: no cache. `num_threads` 0: one per core. `files` must outlive the compiler.
  // `program`: moe-tune's path, for further processes where the threads are more than NVRTC runs
  // side by side in one (kThreadsAProcess); empty: there are none. They compile embedded_kernels().
  // Throws Error(device) when NVRTC cannot be loaded.
  Compiler(std::string arch, std::string cache_dir, int num_threads,
           std::span<const EmbeddedFile> files = embedded_kernels(),
           const std::string& program = "");
  ~Compiler();  // waits for running compilations, drops queued ones
  Compiler(const Compiler&) = delete;
  Compiler& operator=(const Compiler&) = delete;

  const std::string& arch() const;
  // Queues a compilation (once per source); later calls return the same future and may make it more
  // urgent. The future of a compilation that the destructor drops gets a Cubin whose error says so.
  std::shared_future<std::shared_ptr<const Cubin>> submit(const KernelSource& source,
                                                          Urgency urgency = Urgency::next);
  // Submits at the front of the queue and waits.
  std::shared_ptr<const Cubin> get(const KernelSource& source);
  struct Stats {
    int compiled = 0, cache_hits = 0, failed = 0;
    int not_stored = 0;                // of the compiled: the cache directory did not take them
    double compile_s = 0;              // summed over threads
    std::int64_t peak_host_bytes = 0;  // of further processes
  };
  Stats stats() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// "" or why ptxas's log or the resources make the kernel unfit to ship, as "RULE: reason". Rules:
// spill (any stack), performance_loss (ptxas says so: WGMMA serialised, setmaxnreg ignored; C75xx),
// threads (more than its launch bounds), registers (a block does not fit the SM's 65536).
std::string resource_defect(const CompiledKernel& kernel, const std::string& log, int num_threads);

}  // namespace moetune
