#include "lab/judge.hpp"

#include <string>

namespace moetune {
namespace {

std::size_t bytes(std::int64_t count, std::int64_t size) {
  return static_cast<std::size_t>(count) * static_cast<std::size_t>(size);
}
LaunchShape per_element(std::int64_t count) {
  return {dim3(static_cast<unsigned>((count + 255) / 256)), 256};
}

}  // namespace

Judge::Judge(const Layer& layer, const TokenBatch& batch) : layer_(layer), batch_(batch) {
  const LayerShape& s = batch.problem.shape;
  counts_ = Buffer(bytes(s.num_experts, 4));
  slots_ = Buffer(bytes(s.num_experts * batch.problem.num_tokens, 4));
  launch(layer.stream(), kernel("reference_group"),
         LaunchShape{dim3(static_cast<unsigned>((s.num_experts + 31) / 32)), 32},
         batch.routings[0].topk_ids.get<int>(), static_cast<int>(batch.num_slots()),
         static_cast<int>(s.num_experts), slots_.get<int>(), counts_.get<int>(),
         static_cast<int>(batch.problem.num_tokens));
}

cudaKernel_t Judge::kernel(std::string_view name) const {
  return layer_.judge().kernel("moetune_reference::" + std::string(name));
}

Buffer Judge::gemm(const Matrix& a, const Matrix& w, int top_k, std::int64_t n,
                   std::int64_t k) const {
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

Buffer Judge::swiglu(const Buffer& gate_up) const {
  const std::int64_t columns = batch_.problem.shape.intermediate_size;
  const long long count = batch_.num_slots() * columns;
  Buffer out(bytes(count, 4));
  launch(layer_.stream(), kernel("reference_swiglu"), per_element(count), gate_up.get<float>(),
         static_cast<int>(columns), count, out.get<float>());
  return out;
}

void Judge::quantise(const Matrix& in, std::int64_t rows, std::int64_t columns, int block,
                     Buffer& out, Buffer& scales) const {
  const std::int64_t count = rows * ((columns + block - 1) / block);
  out = Buffer(bytes(rows, columns));
  scales = Buffer(bytes(count, 4));
  launch(layer_.stream(), kernel("reference_quantise"),
         LaunchShape{dim3(static_cast<unsigned>(count)), 256}, in.data, static_cast<int>(in.format),
         static_cast<long long>(columns), 1, block, out.get(), scales.get<float>());
}

void Judge::convert(const Matrix& in, std::int64_t rows, std::int64_t columns, float* fp32,
                    void* bf16) const {
  const long long count = rows * columns;
  launch(layer_.stream(), kernel("reference_convert"), per_element(count), in,
         static_cast<long long>(columns), count, fp32, bf16);
}

Buffer Judge::combine(const Buffer& y) const {
  const LayerShape& s = batch_.problem.shape;
  const std::int64_t values = batch_.problem.num_tokens * s.hidden_size;
  Buffer out(bytes(values, 4));
  launch(layer_.stream(), kernel("reference_combine"), per_element(values), y.get<float>(),
         batch_.routings[0].topk_weights.get<float>(), static_cast<int>(s.top_k),
         static_cast<int>(s.hidden_size), static_cast<long long>(values), out.get<float>());
  return out;
}

}  // namespace moetune
