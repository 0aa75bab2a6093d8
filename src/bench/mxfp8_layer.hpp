// One MoE layer in MXFP8: quantise x, GEMM1 with SwiGLU, quantise the activation, GEMM2, weighted
// sum. Each GEMM is tuned by trying every legal point; a plain matmul is a layer of one expert.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bench/mxfp8.hpp"
#include "kernels/journey/mxfp8_host.hpp"
#include "lab/judge.hpp"
#include "measure/check.hpp"
#include "runtime/executor.hpp"

namespace moetune {

// By how much a GEMM or a layer may differ from the judge's, who multiplies the same MXFP8 values
// in fp32 and rounds to bf16 and MXFP8 where the layer does: the error of bf16 outputs.
inline constexpr Tolerance kMxfp8Tolerance{0.006, 0.06};
// And a layer from that of the bf16 weights and inputs, none of which is quantised: five tensors'
// quantisation, each about 0.027.
inline constexpr Tolerance kMxfp8QuantisationTolerance{0.12, 1.0};

// "" or the rules that leave no point of a stage, with numbers and how to go on.
std::string why_no_mxfp8_point(const Gpu& gpu, const Problem& problem, Stage stage);

class Mxfp8Layer {
 public:
  // `problem` is at the largest token count. Makes its weights in bf16 and quantises them once.
  // `num_jobs`: compilations at a time, 0: one a core. Throws Error(device) for a GPU without e4m3
  // or with too little memory, Error(input) for a shape that no point can serve.
  Mxfp8Layer(const Gpu& gpu, const Problem& problem, const std::string& cache_dir, int num_jobs);

  // Inputs for a token count, and what they must give; all the other calls are about them.
  void prepare(std::int64_t num_tokens);

  // Runs a GEMM of this configuration alone, its output poisoned before, and compares every element
  // with the judge's. config.output may be Output::partial for GEMM2: fp32. Throws Error(failed)
  // for a kernel that does not compile or does not fit, naming the rule.
  Deviation check(Stage stage, const Mxfp8Config& config);
  // Tries all points of a stage. Throws Error(failed) where none is right.
  Mxfp8Product tune(Stage stage);
  // The whole layer with each stage's best point, which tune() found; with its errors against the
  // judge's and against the bf16 layer's. Throws Error(failed) where it is wrong.
  Mxfp8Product measure();

 private:
  struct Quantised {
    Buffer values, scales;
    Buffer judge_scales;  // as the judge reads them: fp32 [rows, columns / 32]
  };
  struct Gemm {
    Mxfp8Config config{};
    std::unique_ptr<Executor> executor;
  };

  Gemm load(Stage stage, const Mxfp8Config& config);
  Bindings bind(const LayerProgram& program, int routing) const;
  void enqueue(const Executor& executor, int routing);
  // One call of a GEMM on routing 0, its memory poisoned before. Sorts for it all routings and, for
  // GEMM2, packs the judge's activation as routing 0 has it.
  Deviation compare_stage(Stage stage, const Gemm& gemm);
  // Its first and last rows are compared with the definition.
  Quantised quantise(const Mxfp8Quantiser& quantiser, const Buffer& in, std::int64_t rows,
                     std::int64_t columns, bool for_judge) const;
  Matrix judged(const Quantised& tensor) const;
  void make_reference_output();
  std::string_view path(const Gemm& gemm) const;

  Gpu gpu_;
  Problem problem_;
  Compiler compiler_;  // of the layer's kernels and of these
  Layer layer_;
  Mxfp8Quantiser quantise_h_, quantise_i_;  // rows of H, of I
  Quantised w13_, w2_;
  std::optional<Gemm> best_[2];

  // Of the last prepare().
  std::unique_ptr<TokenBatch> batch_;
  Quantised x_;
  Quantised want_activation_q_;                                        // by slot
  Buffer want_activation_, want_activation_bf16_, want_y_, want_out_;  // by slot; [T, H]
};

}  // namespace moetune
