// A plan compiled and loaded, to be run on a lab layer: prepared, poisoned, called, compared.
#pragma once

#include <map>
#include <memory>
#include <string_view>

#include "lab/layer.hpp"
#include "measure/check.hpp"

namespace moetune {

class LoadedPlan {
 public:
  // Of one stage of `problem`, whose token count does not matter. Compiles nothing yet.
  LoadedPlan(Layer& layer, const Problem& problem, Plan plan, Stage stage);

  bool fp8() const { return fp8_; }
  // Makes a call on `batch` ready: builds its program, loads its kernels, grows the layer's memory.
  // Not while capturing, and graphs captured before must not be launched afterwards where it grew
  // (Layer::generation). Throws as build() and KernelLoader::load() do.
  void prepare(TokenBatch& batch);
  // Of a GEMM stage, before its calls: sorts all routings, and gives GEMM2 the reference's
  // activation as routing 0 has it. Nothing for a layer.
  void set_up(TokenBatch& batch);
  // Enqueues one call on a prepared batch.
  void enqueue(TokenBatch& batch, int routing);
  // Where calls on a prepared batch leave their result: bf16 [num_tokens, H]; of GEMM1 the
  // activation [num_slots, I] in GEMM2's format, in the order of positions().
  Matrix result(const TokenBatch& batch) const;
  const int* positions(const TokenBatch& batch) const;  // of routing 0; null where it is by token
  // The result that a call on routing 0 left, against the reference, which must be made.
  Deviation deviation(const TokenBatch& batch) const;
  // All of this for one call on routing 0 with poisoned memory. Throws Error(failed) naming `what`
  // when the result is wrong. Waits for the stream.
  Deviation check(TokenBatch& batch, std::string_view what);
  const LayerProgram& program(const TokenBatch& batch) const;

 private:
  const Executor& executor(const TokenBatch& batch) const;
  void pack_reference(const LayerProgram& program, TokenBatch& batch);

  Layer& layer_;
  Problem problem_;
  Plan plan_;
  Stage stage_;
  bool fp8_ = false;
  std::map<std::int64_t, std::unique_ptr<Executor>> executors_;  // by token count
};

}  // namespace moetune
