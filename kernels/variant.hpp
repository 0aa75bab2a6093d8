// A kernel variant's host half: where it runs, its search space, and how a point is compiled and
// launched. No CUDA here, so that spaces and rules are tested without a GPU.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/gpu.hpp"
#include "core/point.hpp"
#include "core/problem.hpp"
#include "core/trial.hpp"

namespace moetune {

// Whether points may multiply in fp8: `off` fixes FP8=0, `on` fixes FP8=1, `both` searches it.
enum class Fp8Mode { off, on, both };
Fp8Mode parse_fp8_mode(std::string_view text);  // throws Error(usage)
std::string_view to_string(Fp8Mode mode);
// What a dtype implies when the user does not say: bf16 -> off, fp8_* -> on.
Fp8Mode default_fp8_mode(Dtype dtype);

// What NVRTC gets: an embedded source file, the template instances wanted, and extra options.
struct KernelSource {
  std::string file;                      // e.g. "portable/moe_gemm.cu"
  std::vector<std::string> expressions;  // e.g. "moe_gemm<GemmConfig{.block_m = 64, ...}>"
  std::vector<std::string> options;      // beside the architecture and the common ones
};

class Variant {
 public:
  virtual ~Variant() = default;
  virtual std::string_view name() const = 0;
  virtual std::string_view help() const = 0;  // one line
  virtual bool supports(const Gpu& gpu, Dtype dtype) const = 0;
  // The space for one stage (gemm1 or gemm2) at problem.num_tokens. Its constraints hold
  // everything that can be known before compiling.
  virtual SearchSpace space(const Gpu& gpu, const Problem& problem, Stage stage,
                            Fp8Mode fp8) const = 0;
  // The GEMM kernel of a legal point. It does not depend on num_tokens: one cubin serves all.
  virtual KernelSource source(const Gpu& gpu, const Problem& problem, Stage stage,
                              const Point& point) const = 0;
  // Dynamic shared memory and threads of one block of that kernel.
  virtual int smem_bytes(const Problem& problem, Stage stage, const Point& point) const = 0;
  virtual int num_threads(const Point& point) const = 0;
  // Predicted microseconds of the stage from bytes, flops and waves: an ordering, not a
  // measurement.
  virtual double predict_us(const Gpu& gpu, const Problem& problem, Stage stage,
                            const Point& point) const = 0;
};

// kernels/registry.cpp: every variant, in order of preference for ties.
const std::vector<std::unique_ptr<Variant>>& variants();
const Variant& find_variant(std::string_view name);  // throws Error(input) naming the nearest

// The reference point that speedups are measured against: BLOCK_SIZE 64, 4 warps, 2 stages, FP8
// off, adapted only where the dtype needs it. A plan of the portable variant's gemm1 and gemm2.
Plan reference_plan(const Gpu& gpu, const Problem& problem);

// The kernels around the GEMMs (sort, quantise, activation, combine) that this problem needs.
std::vector<KernelSource> support_sources(const Gpu& gpu, const Problem& problem);

}  // namespace moetune
