// Measures techniques one by one: pairs of layers that differ in one thing, each checked first.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "bench/levels.hpp"
#include "bench/measure_call.hpp"
#include "bench/numbered_calls.hpp"
#include "report/technique_report.hpp"

namespace moetune {

class Techniques {
 public:
  // `problem` is bf16 at the largest token count. With fp8 weights as well where the GPU and the
  // shape allow. `calls` counts the sides. Throws Error(device) saying how much memory is missing.
  Techniques(const Gpu& gpu, const Problem& problem, const std::string& cache_dir,
             NumberedCalls& calls);

  // Whether there are fp8 weights to compare.
  bool has_fp8() const { return no_fp8_.empty(); }
  // Fills row.pairs at row.problem.num_tokens. Pairs of GEMM parameters start from `plan`, those of
  // fp8 from `fp8_plan` (of Dtype::fp8_block; steps that multiply in bf16 give way to their
  // variant's fp8 reference). A side that does not run is data; throws
  // Error(device) when the GPU is lost.
  void run(TechniqueRow& row, const Plan& plan, const Plan& fp8_plan);

 private:
  TechniqueSide measure_plan(std::string label, const Plan& plan, TokenBatch& batch,
                             bool quantise_weights);
  TechniqueSide measure_padding(std::string label, int padding, TokenBatch& batch);
  template <typename Measure>
  void guarded(TechniqueSide& side, const Measure& measure);
  TechniquePair tile_order(const Plan& plan, TokenBatch& batch);
  TechniquePair split_k(const Plan& plan, TokenBatch& batch);
  TechniquePair fused_swiglu(const Plan& plan, TokenBatch& batch);
  TechniquePair padding(std::string name, std::string label, int rows, TokenBatch& batch);
  TechniquePair fp8_weights(Plan plan, TokenBatch& batch);
  void enqueue_quantise();

  NumberedCalls& calls_;
  Gpu gpu_;
  Problem problem_;
  std::string no_fp8_;  // why there are no fp8 weights
  Compiler compiler_;
  std::unique_ptr<Layer> layer_;
  std::unique_ptr<Levels> levels_;
  std::optional<Module> quantise_;
};

// `plan` with a parameter set in both GEMMs, where they have it. Returns "" or which step lacks it.
std::string set_parameter(Plan& plan, std::string_view name, int value);

// Where a pair starts from: steps whose variant lacks the parameter, and plans whose GEMMs share a
// launch, are replaced by the reference point's. `op`: only this step needs it. Returns "" or what
// was replaced and why.
std::string with_parameter(Plan& plan, std::string_view name, const Plan& reference,
                           std::string_view op = "");

}  // namespace moetune
