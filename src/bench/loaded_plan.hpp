// A plan compiled, checked and loaded, to be run on a layer of this process.
#pragma once

#include <memory>
#include <string_view>

#include "layer/layer.hpp"
#include "measure/check.hpp"

namespace moetune {

class LoadedPlan {
 public:
  // `plan` has a gemm1 and a gemm2 step. Throws Error(failed) saying which step breaks a rule of
  // its variant, does not compile, does not fit the GPU, or does not go with the other.
  LoadedPlan(const Gpu& gpu, const Problem& problem, const Plan& plan, Compiler& compiler);

  bool fp8() const { return gemm2_.fp8(); }
  // Grows the layer's workspace to what a call on `batch` needs; not while capturing, and graphs
  // captured before must not be launched afterwards where it grew.
  void prepare(Layer& layer, TokenBatch& batch) const;
  // Enqueues one whole layer call.
  void enqueue(Layer& layer, TokenBatch& batch, int routing) const;
  // Where a call on `batch` leaves its output: bf16 [num_tokens, H].
  Matrix result(const Layer& layer, const TokenBatch& batch) const {
    return layer.result(Stage::layer, gemm2_, batch);
  }
  // One call on routing 0 with poisoned outputs, compared with the reference. Throws Error(failed)
  // naming `what` when the result is wrong. Waits for the stream.
  Deviation check(Layer& layer, TokenBatch& batch, std::string_view what) const;

 private:
  std::unique_ptr<Module> modules_[2];
  GemmStep gemm1_, gemm2_;
};

}  // namespace moetune
