#include "layer/reference.hpp"

namespace moetune {
namespace {

std::size_t bytes(std::int64_t count, std::int64_t size) {
  return static_cast<std::size_t>(count) * static_cast<std::size_t>(size);
}
LaunchShape per_element(std::int64_t count) {
  return {dim3(static_cast<unsigned>((count + 255) / 256)), 256};
}

class Judge {
 public:
  Judge(Layer& layer, TokenBatch& batch) : layer_(layer), batch_(batch) {
    const LayerShape& s = batch.problem.shape;
    counts_ = Buffer(bytes(s.num_experts, 4));
    slots_ = Buffer(bytes(s.num_experts * batch.problem.num_tokens, 4));
    launch(layer.stream(), kernel("reference_group"),
           LaunchShape{dim3(static_cast<unsigned>((s.num_experts + 31) / 32)), 32},
           batch.routings[0].topk_ids.get<int>(), static_cast<int>(batch.num_slots()),
           static_cast<int>(s.num_experts), slots_.get<int>(), counts_.get<int>(),
           static_cast<int>(batch.problem.num_tokens));
  }

  cudaKernel_t kernel(std::string_view name) const {
    return layer_.judge().kernel("moetune_reference::" + std::string(name));
  }

  Buffer gemm(const Matrix& a, const Matrix& w, int top_k, std::int64_t n, std::int64_t k) const {
    Buffer out(bytes(batch_.num_slots() * n, 4));
    const auto& problem = batch_.problem;
    const LaunchShape shape{
        dim3(static_cast<unsigned>((n + 63) / 64), static_cast<unsigned>(problem.shape.num_experts),
             static_cast<unsigned>((problem.num_tokens + 63) / 64)),
        256};
    launch(layer_.stream(), kernel("reference_gemm"), shape, a, w, slots_.get<int>(),
           counts_.get<int>(), static_cast<int>(problem.num_tokens), top_k, static_cast<int>(n),
           static_cast<int>(k), out.get<float>());
    return out;
  }

  // e4m3 with one scale for `block` columns of a row.
  void quantise(const Matrix& in, std::int64_t rows, std::int64_t columns, int block, Buffer& out,
                Buffer& scales) const {
    const std::int64_t count = rows * ((columns + block - 1) / block);
    out = Buffer(bytes(rows, columns));
    scales = Buffer(bytes(count, 4));
    launch(layer_.stream(), kernel("reference_quantise"),
           LaunchShape{dim3(static_cast<unsigned>(count)), 256}, in.data,
           static_cast<int>(in.format), static_cast<long long>(columns), 1, block, out.get(),
           scales.get<float>());
  }

  void convert(const Matrix& in, std::int64_t rows, std::int64_t columns, float* fp32,
               void* bf16) const {
    const long long count = rows * columns;
    launch(layer_.stream(), kernel("reference_convert"), per_element(count), in,
           static_cast<long long>(columns), count, fp32, bf16);
  }

 private:
  Layer& layer_;
  TokenBatch& batch_;
  Buffer counts_;
  Buffer slots_;
};

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
    reference->activation = Buffer(bytes(slots * s.intermediate_size, 4));
    const long long count = slots * s.intermediate_size;
    launch(layer.stream(), judge.kernel("reference_swiglu"), per_element(count),
           gate_up.get<float>(), static_cast<int>(s.intermediate_size), count,
           reference->activation.get<float>());
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
  const std::int64_t values = batch.problem.num_tokens * s.hidden_size;
  reference->out = Buffer(bytes(values, 4));
  launch(layer.stream(), judge.kernel("reference_combine"), per_element(values), y.get<float>(),
         batch.routings[0].topk_weights.get<float>(), static_cast<int>(s.top_k),
         static_cast<int>(s.hidden_size), static_cast<long long>(values),
         reference->out.get<float>());
  layer.stream().synchronize();
}

}  // namespace moetune
