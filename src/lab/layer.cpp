#include "lab/layer.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "core/error.hpp"
#include "kernels/common/params.hpp"
#include "kernels/support/support.hpp"

namespace moetune {
namespace {

constexpr std::size_t kCounterBytes = 4096;
constexpr std::int64_t kCounterAlignment = 16;

std::size_t bytes(std::int64_t count, std::int64_t size) {
  return static_cast<std::size_t>(count) * static_cast<std::size_t>(size);
}
std::shared_ptr<const Cubin> must_compile(Compiler& compiler, const KernelSource& source) {
  auto cubin = compiler.get(source);
  if (!cubin->ok()) {
    throw Error(ErrorKind::failed, fmt::format("{}: {}", source.file, cubin->error));
  }
  return cubin;
}

}  // namespace

void check_fits(const Problem& problem, bool with_fp8, double free_bytes) {
  double need = weight_bytes(problem.shape, Dtype::bf16);
  if (with_fp8) need += weight_bytes(problem.shape, Dtype::fp8_block);
  // Activations of a call and the reference's fp32 copies.
  const double slots = static_cast<double>(problem.num_tokens * problem.shape.top_k);
  need += slots *
          static_cast<double>(16 * problem.shape.intermediate_size + 8 * problem.shape.hidden_size);
  if (need > free_bytes) {
    throw Error(ErrorKind::device,
                fmt::format("{} with {} tokens needs about {:.1f} GB of GPU memory, {:.1f} GB are "
                            "free; use --tp or --ep to take a shard, or fewer tokens",
                            problem.shape.model, problem.num_tokens, need / 1e9, free_bytes / 1e9));
  }
}

Layer::Layer(const Gpu& gpu, const Problem& problem, bool with_fp8, Compiler& compiler)
    : gpu_(gpu),
      problem_(problem),
      kernels_(compiler),
      judge_(*must_compile(compiler, reference_kernels())) {
  const LayerShape& s = problem.shape;
  std::size_t free = 0;
  std::size_t total = 0;
  check_cuda(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  check_fits(problem, with_fp8, static_cast<double>(free));
  const auto fill = [&](Buffer& buffer, std::int64_t count, std::int64_t k, std::uint64_t seed) {
    buffer = Buffer(bytes(count, 2));
    launch(stream_, judge_.kernel("moetune_reference::fill_normal_bf16"),
           LaunchShape{dim3(4096), 256}, buffer.get(), static_cast<long long>(count),
           static_cast<float>(1.0 / std::sqrt(static_cast<double>(k))),
           static_cast<unsigned long long>(seed));
  };
  const std::int64_t w13_rows = s.num_experts * 2 * s.intermediate_size;
  const std::int64_t w2_rows = s.num_experts * s.hidden_size;
  fill(weights_.w13, w13_rows * s.hidden_size, s.hidden_size, problem.seed * 4 + 1);
  fill(weights_.w2, w2_rows * s.intermediate_size, s.intermediate_size, problem.seed * 4 + 2);
  if (with_fp8) {
    const bool block = fp8_dtype() == Dtype::fp8_block;
    const auto quantise = [&](const Buffer& in, std::int64_t rows_per_expert, std::int64_t columns,
                              Buffer& out, Buffer& scale) {
      const std::int64_t rows = rows_per_expert * s.num_experts;
      const std::int64_t row_block = block ? kScaleGroup : rows_per_expert;
      const std::int64_t column_block = block ? kScaleGroup : columns;
      const std::int64_t scales = rows / row_block * ((columns + column_block - 1) / column_block);
      out = Buffer(bytes(rows, columns));
      scale = Buffer(bytes(scales, 4));
      launch(stream_, judge_.kernel("moetune_reference::reference_quantise"),
             LaunchShape{dim3(static_cast<unsigned>(scales)), 256}, in.get(),
             static_cast<int>(Format::bf16), static_cast<long long>(columns), narrow(row_block),
             narrow(column_block), out.get(), scale.get<float>());
    };
    quantise(weights_.w13, 2 * s.intermediate_size, s.hidden_size, weights_.w13_q,
             weights_.w13_scale);
    quantise(weights_.w2, s.hidden_size, s.intermediate_size, weights_.w2_q, weights_.w2_scale);
  }
  counters_ = Buffer(kCounterBytes);
  check_cuda(cudaMemsetAsync(counters_.get(), 0, counters_.size(), stream_.get()), "memset");
  stream_.synchronize();
}

Dtype Layer::fp8_dtype() const {
  return problem_.dtype == Dtype::fp8_tensor ? Dtype::fp8_tensor : Dtype::fp8_block;
}

std::unique_ptr<TokenBatch> Layer::make_batch(const Problem& problem, int num_routings) {
  auto batch = std::make_unique<TokenBatch>();
  batch->problem = problem;
  const LayerShape& s = problem.shape;
  const std::int64_t values = problem.num_tokens * s.hidden_size;
  batch->x = Buffer(bytes(values, 2));
  const unsigned long long x_seed = problem.seed * 4 + 3;
  launch(stream_, judge_.kernel("moetune_reference::fill_normal_bf16"),
         LaunchShape{dim3(4096), 256}, batch->x.get(), static_cast<long long>(values), 1.0f,
         x_seed);
  for (int r = 0; r < num_routings; ++r) {
    const RoutingData data = make_routing(problem, r);
    DeviceRouting routing;
    routing.topk_ids = Buffer(data.topk_ids.size() * 4);
    routing.topk_ids.upload(data.topk_ids.data(), data.topk_ids.size() * 4);
    routing.topk_weights = Buffer(data.topk_weights.size() * 4);
    routing.topk_weights.upload(data.topk_weights.data(), data.topk_weights.size() * 4);
    batch->routings.push_back(std::move(routing));
  }
  stream_.synchronize();
  return batch;
}

void Layer::reserve(const LayerProgram& program, TokenBatch& batch) {
  const auto grow = [&](Buffer& buffer, std::int64_t size) {
    const void* const before = buffer.get();
    buffer.reserve(bytes(size, 1));
    if (buffer.get() != before) ++generation_;
  };
  grow(workspace_, workspace_layout(program).bytes);
  grow(out_, program.tensors.at(tensor::out).bytes);
  const std::int64_t setup_bytes = workspace_layout(program, true).bytes;
  if (setup_bytes == 0) return;
  for (DeviceRouting& routing : batch.routings) grow(routing.setup, setup_bytes);
}

void* Layer::counter(const TensorSpec& spec) const {
  const auto found = counter_offsets_.find(spec.name);
  if (found != counter_offsets_.end()) return counters_.get<char>() + found->second;
  std::int64_t offset = 0;
  for (const auto& [name, taken] : counter_offsets_) offset = std::max(offset, taken);
  if (!counter_offsets_.empty()) offset += 2 * kCounterAlignment;
  if (spec.bytes > 2 * kCounterAlignment || bytes(offset + spec.bytes, 1) > counters_.size())
    throw std::logic_error("no room for counters: " + spec.name);
  counter_offsets_.emplace(spec.name, offset);
  return counters_.get<char>() + offset;
}

Bindings Layer::bind(const LayerProgram& program, const TokenBatch& batch, int routing) const {
  const DeviceRouting& chosen = batch.routings.at(static_cast<std::size_t>(routing));
  Bindings bindings{};
  const bool fp8 = program.fp8;
  bindings[tensor::x] = batch.x.get();
  bindings[tensor::topk_ids] = chosen.topk_ids.get();
  bindings[tensor::topk_weights] = chosen.topk_weights.get();
  bindings[tensor::w13] = (fp8 ? weights_.w13_q : weights_.w13).get();
  bindings[tensor::w13_scale] = fp8 ? weights_.w13_scale.get() : nullptr;
  bindings[tensor::w2] = (fp8 ? weights_.w2_q : weights_.w2).get();
  bindings[tensor::w2_scale] = fp8 ? weights_.w2_scale.get() : nullptr;
  bindings[tensor::out] = out_.get();
  for (const bool of_setup : {false, true}) {
    const WorkspaceLayout layout = workspace_layout(program, of_setup);
    char* const base = (of_setup ? chosen.setup : workspace_).get<char>();
    for (std::size_t i = 0; i < layout.offsets.size(); ++i)
      if (layout.offsets[i] >= 0) bindings[i] = base + layout.offsets[i];
  }
  for (std::size_t i = 0; i < program.tensors.size(); ++i)
    if (program.tensors[i].role == Role::counter) bindings[i] = counter(program.tensors[i]);
  return bindings;
}

void Layer::poison() {
  for (const Buffer* buffer : {&workspace_, &out_}) {
    if (buffer->size() == 0) continue;
    check_cuda(cudaMemsetAsync(buffer->get(), 0xff, buffer->size(), stream_.get()), "memset");
  }
}

}  // namespace moetune
