#include "lab/reference.hpp"

#include "lab/judge.hpp"

namespace moetune {
namespace {

std::size_t bytes(std::int64_t count, std::int64_t size) {
  return static_cast<std::size_t>(count) * static_cast<std::size_t>(size);
}

}  // namespace

void make_reference(Layer& layer, TokenBatch& batch, bool fp8) {
  auto& reference = batch.reference[fp8 ? 1 : 0];
  if (reference) return;
  reference = std::make_unique<ReferenceOutput>();
  const LayerShape& s = batch.problem.shape;
  const std::int64_t slots = batch.num_slots();
  const Judge judge(layer, batch);
  const bool block = layer.fp8_dtype() == Dtype::fp8_block;
  const auto group = [&](std::int64_t columns) {
    return block ? kScaleGroup : static_cast<int>(columns);
  };
  const auto weight = [&](const Buffer& bf16, const Buffer& q, const Buffer& scale,
                          std::int64_t rows, std::int64_t columns) -> Matrix {
    if (!fp8) return {bf16.get(), nullptr, Format::bf16, 1, 1};
    return {q.get(), scale.get<float>(), Format::e4m3, block ? kScaleGroup : static_cast<int>(rows),
            group(columns)};
  };
  const Weights& w = layer.weights();

  Matrix x{batch.x.get(), nullptr, Format::bf16, 1, 1};
  Buffer x_q;
  Buffer x_scale;
  if (fp8) {
    judge.quantise(x, batch.problem.num_tokens, s.hidden_size, group(s.hidden_size), x_q, x_scale);
    x = {x_q.get(), x_scale.get<float>(), Format::e4m3, 1, group(s.hidden_size)};
  }
  {
    const Buffer gate_up =
        judge.gemm(x, weight(w.w13, w.w13_q, w.w13_scale, 2 * s.intermediate_size, s.hidden_size),
                   static_cast<int>(s.top_k), 2 * s.intermediate_size, s.hidden_size);
    reference->activation = judge.swiglu(gate_up);
    layer.stream().synchronize();  // before gate_up goes
  }
  Matrix activation{reference->activation.get(), nullptr, Format::fp32, 1, 1};
  if (fp8) {
    judge.quantise(activation, slots, s.intermediate_size, group(s.intermediate_size),
                   reference->gemm2_input, reference->gemm2_scale);
    const Matrix quantised{reference->gemm2_input.get(), reference->gemm2_scale.get<float>(),
                           Format::e4m3, 1, group(s.intermediate_size)};
    judge.convert(quantised, slots, s.intermediate_size, reference->activation.get<float>(),
                  nullptr);
  } else {
    reference->gemm2_input = Buffer(bytes(slots * s.intermediate_size, 2));
    judge.convert(activation, slots, s.intermediate_size, nullptr, reference->gemm2_input.get());
  }
  const Buffer y =
      judge.gemm(activation, weight(w.w2, w.w2_q, w.w2_scale, s.hidden_size, s.intermediate_size),
                 1, s.hidden_size, s.intermediate_size);
  reference->out = judge.combine(y);
  layer.stream().synchronize();
}

}  // namespace moetune
