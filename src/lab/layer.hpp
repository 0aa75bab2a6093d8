// What measuring a layer needs beside its program: random weights, token batches, memory for calls.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/gpu.hpp"
#include "core/problem.hpp"
#include "core/trial.hpp"
#include "cuda/launch.hpp"
#include "lab/routing.hpp"
#include "runtime/executor.hpp"

namespace moetune {

// A row-major matrix as the kernels see it. scales: one for row_block x column_block elements.
enum class Format : int { fp32, bf16, e4m3 };
struct Matrix {
  const void* data = nullptr;
  const float* scales = nullptr;
  Format format = Format::fp32;
  int row_block = 1;
  int column_block = 1;
  std::int64_t scale_pitch = 0;  // 0: scales lie by rows, else by column blocks, this far apart
};

// Weights of all experts: bf16, and the same quantised once when the problem asks for fp8.
struct Weights {
  Buffer w13, w2;           // bf16 [E, 2I, H], [E, H, I]
  Buffer w13_q, w13_scale;  // e4m3 and fp32 scales
  Buffer w2_q, w2_scale;
};

struct DeviceRouting {
  Buffer topk_ids;      // int [T, K]
  Buffer topk_weights;  // float [T, K]
  Buffer setup;         // what the setup of a GEMM stage's program leaves for its calls
};

// What the judge says a batch's routing 0 must give, in one precision.
struct ReferenceOutput {
  Buffer activation;   // fp32 [num_slots, I], after requantisation for fp8
  Buffer out;          // fp32 [T, H]
  Buffer gemm2_input;  // the activation in GEMM2's format, bf16 or e4m3, by slot
  Buffer gemm2_scale;  // fp32, fp8 only
};

// Inputs for one token count: x and one or more routings.
struct TokenBatch {
  Problem problem;  // with this batch's num_tokens and routing
  Buffer x;         // bf16 [T, H]
  std::vector<DeviceRouting> routings;
  std::array<std::unique_ptr<ReferenceOutput>, 2> reference;  // [bf16, fp8], made when needed
  std::int64_t num_slots() const { return problem.num_tokens * problem.shape.top_k; }
};

class Layer {
 public:
  // Makes random weights on the device: normal, deviation K^-1/2 so that activations keep their
  // size. `with_fp8` adds the quantised copy. Throws Error(device) saying how much memory is
  // needed. `compiler` must outlive this.
  Layer(const Gpu& gpu, const Problem& problem, bool with_fp8, Compiler& compiler);

  const Gpu& gpu() const { return gpu_; }
  const Problem& problem() const { return problem_; }
  const Stream& stream() const { return stream_; }
  const Weights& weights() const { return weights_; }
  KernelLoader& kernels() { return kernels_; }
  const Module& judge() const { return judge_; }
  Dtype fp8_dtype() const;  // fp8_block unless the problem says fp8_tensor

  std::unique_ptr<TokenBatch> make_batch(const Problem& problem, int num_routings);

  // Reserves what calls of a program on this batch need; not while capturing. Programs share the
  // memory: calls on one stream follow each other.
  void reserve(const LayerProgram& program, TokenBatch& batch);
  // Rises when reserve() moves anything: graphs captured before must not be launched afterwards.
  int generation() const { return generation_; }
  // Where a program's tensors lie for one routing. Valid until the generation rises.
  Bindings bind(const LayerProgram& program, const TokenBatch& batch, int routing) const;
  // Fills every intermediate and the output with NaN bytes.
  void poison();

 private:
  void* counter(const TensorSpec& spec) const;

  Gpu gpu_;
  Problem problem_;
  Stream stream_;
  KernelLoader kernels_;
  Module judge_;
  Weights weights_;
  Buffer workspace_, out_;
  Buffer counters_;  // 0 at first
  mutable std::map<std::string, std::int64_t, std::less<>> counter_offsets_;
  int generation_ = 0;
};

// Throws Error(device) saying how much memory the layer needs when it is more than `free_bytes`.
void check_fits(const Problem& problem, bool with_fp8, double free_bytes);

}  // namespace moetune
