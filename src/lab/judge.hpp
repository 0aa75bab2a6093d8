// Launches the judge's kernels (kernels/reference): slow, obvious, fp32, by slot.
#pragma once

#include <string_view>

#include "lab/layer.hpp"

namespace moetune {

// For routing 0 of a batch. Launches on the layer's stream; both must outlive it.
class Judge {
 public:
  Judge(const Layer& layer, const TokenBatch& batch);

  cudaKernel_t kernel(std::string_view name) const;
  // fp32 [num_slots, n]: row slot / top_k of `a` times the weights [n, k] of the slot's expert.
  Buffer gemm(const Matrix& a, const Matrix& w, int top_k, std::int64_t n, std::int64_t k) const;
  // fp32 [num_slots, I] of fp32 [num_slots, 2I].
  Buffer swiglu(const Buffer& gate_up) const;
  // e4m3 with one scale for `block` columns of a row.
  void quantise(const Matrix& in, std::int64_t rows, std::int64_t columns, int block, Buffer& out,
                Buffer& scales) const;
  // To fp32, or rounded to bf16; the other is null.
  void convert(const Matrix& in, std::int64_t rows, std::int64_t columns, float* fp32,
               void* bf16) const;
  // fp32 [num_tokens, H] of fp32 [num_slots, H].
  Buffer combine(const Buffer& y) const;

 private:
  const Layer& layer_;
  const TokenBatch& batch_;
  Buffer counts_;
  Buffer slots_;
};

}  // namespace moetune
