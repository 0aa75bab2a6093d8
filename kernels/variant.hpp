// A kernel variant's host half: where it runs, its search space, how a point is compiled and what a
// call launches of it. No CUDA here, so that spaces and rules are tested without a GPU.
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
#include "kernels/common/params.hpp"
#include "kernels/source.hpp"

namespace moetune {

class ProgramBuilder;

// Whether points may multiply in fp8: `off` fixes FP8=0, `on` fixes FP8=1, `both` searches it.
enum class Fp8Mode { off, on, both };
Fp8Mode parse_fp8_mode(std::string_view text);  // throws Error(usage)
std::string_view to_string(Fp8Mode mode);
// What a dtype implies when the user does not say: bf16 -> off, fp8_* -> on.
Fp8Mode default_fp8_mode(Dtype dtype);

// How a point's GEMM is launched, and what the kernels around it must know of it.
struct GemmLaunch {
  int num_threads = 0;   // of a block
  int smem_bytes = 0;    // dynamic, of a block
  int block_m = 0;       // rows of a tile: what the sort's tile list is made for
  int tile_columns = 0;  // output columns of a tile
  int group_m = 1;       // row tiles of an expert that are walked together
  bool column_major = false;
  int split_k = 1;
  bool fp8 = false;
  Output output = Output::bf16;
  bool sums() const { return output == Output::weighted_sum; }  // gemm2: no combine follows
  bool gathers = true;  // gemm1: reads rows of x by slot; else it wants them packed
  // Persistent kernels: blocks an SM, each of which takes tile after tile. 0: a block a tile.
  int blocks_per_sm = 0;
  int cluster = 1;  // blocks that share a tile of block_m rows
  // Rows of the 128-byte wide boxes in which the copy engine (TMA) reads an operand; 0: it does
  // not.
  int w_box_rows = 0;
  int a_box_rows = 0;
  int w_promotion = 256;  // bytes that L2 fetches for a weight row of a box
  bool uses_tma() const { return w_box_rows > 0; }
};

class Variant {
 public:
  virtual ~Variant() = default;
  virtual std::string_view name() const = 0;
  virtual std::string_view help() const = 0;  // one line
  // Where all its kernels are, "portable/moe_gemm.cu": this and what it includes are its sources.
  virtual std::string_view source_file() const = 0;
  virtual bool supports(const Gpu& gpu, Dtype dtype) const = 0;
  // The space for one stage (gemm1 or gemm2) at problem.num_tokens. Its constraints hold
  // everything that can be known before compiling.
  virtual SearchSpace space(const Gpu& gpu, const Problem& problem, Stage stage,
                            Fp8Mode fp8) const = 0;
  // The GEMM kernel of a legal point. It does not depend on num_tokens: one cubin serves all.
  virtual KernelSource source(const Gpu& gpu, const Problem& problem, Stage stage,
                              const Point& point) const = 0;
  virtual GemmLaunch launch(const Problem& problem, Stage stage, const Point& point) const = 0;
  // Whether a GEMM2 of this point does GEMM1 in the same launch: it has no time of its own, and
  // append_layer() says what a layer is.
  virtual bool fuses_gemms(const Point&) const { return false; }
  // Appends the ops of a whole layer whose plan has a GEMM2 that fuses_gemms(): see
  // program/steps.hpp for those that go around it.
  virtual void append_layer(ProgramBuilder&, const Plan&) const {}
  // Predicted microseconds of the stage from bytes, flops and waves: an ordering, not a
  // measurement.
  virtual double predict_us(const Gpu& gpu, const Problem& problem, Stage stage,
                            const Point& point) const = 0;
  // Plans whose GEMMs share a launch, so that only whole layers show what they take. A handful.
  virtual std::vector<Plan> joined_plans(const Gpu&, const Problem&, Fp8Mode) const { return {}; }
};

// Why a plan's two GEMMs do not go together, as "RULE: reason"; empty when they do.
std::string pair_defect(const Plan& plan);

// GEMM2's choice of who does the weighted sum, in every variant.
Parameter fuse_combine();
// FP8, in every variant: what the mode leaves of 0 and 1.
Parameter fp8_parameter(Fp8Mode mode, std::string help = "1: e4m3 operands, 0: bf16");

// kernels/registry.cpp: every variant, in order of preference for ties.
const std::vector<std::unique_ptr<Variant>>& variants();
const Variant& find_variant(std::string_view name);  // throws Error(input) naming the nearest

// Whose points the reference plan is of.
inline constexpr std::string_view kReferenceVariant = "portable";
// The reference point that speedups are measured against: BLOCK_SIZE 64, 4 warps, 2 stages, FP8
// off, adapted only where the dtype needs it. A plan of the portable variant's gemm1 and gemm2.
Plan reference_plan(const Gpu& gpu, const Problem& problem);

}  // namespace moetune
