#include "layer/layer.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/error.hpp"
#include "kernels/decode/config.hpp"

namespace moetune {
namespace {

constexpr std::int64_t kMaxExperts = 1024;
constexpr std::int64_t kMaxSlots = 1 << 21;  // small_kernels.cu counts them in 21 bits

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

std::int64_t max_row_tiles(std::int64_t num_slots, std::int64_t num_experts, int block_m) {
  return std::min(num_slots, num_slots / block_m + std::min(num_experts, num_slots));
}

GemmStep gemm_step(const Problem& problem, const Step& step, cudaKernel_t kernel) {
  const Stage stage = step.op == "gemm1" ? Stage::gemm1 : Stage::gemm2;
  GemmStep ready{find_variant(step.variant).launch(problem, stage, step.point), kernel};
  allow_smem(kernel, static_cast<unsigned>(ready.shape.smem_bytes));
  return ready;
}

Layer::Layer(const Gpu& gpu, const Problem& problem, bool with_fp8, Compiler& compiler)
    : gpu_(gpu),
      problem_(problem),
      small_(*must_compile(compiler, small_kernels(problem))),
      judge_(*must_compile(compiler, reference_kernels())),
      overlap_(gpu.cc() >= 90) {
  const LayerShape& s = problem.shape;
  if (s.num_experts > kMaxExperts) {
    throw Error(ErrorKind::input, fmt::format("{} experts; the sort kernel holds at most {}",
                                              s.num_experts, kMaxExperts));
  }
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
  tickets_ = Buffer(bytes(4, 4));
  decode_counters_ = Buffer(bytes(std::int64_t{2} * (decode::kMaxBlocksPerSm + 1), 8));
  for (const Buffer* buffer : {&tickets_, &decode_counters_}) {
    check_cuda(cudaMemsetAsync(buffer->get(), 0, buffer->size(), stream_.get()), "memset");
  }
  stream_.synchronize();
}

Dtype Layer::fp8_dtype() const {
  return problem_.dtype == Dtype::fp8_tensor ? Dtype::fp8_tensor : Dtype::fp8_block;
}

LaunchShape Layer::shape(std::int64_t grid, unsigned threads) const {
  return {dim3(static_cast<unsigned>(grid)), threads, 0, overlap_};
}

std::unique_ptr<TokenBatch> Layer::make_batch(const Problem& problem, int num_routings) {
  auto batch = std::make_unique<TokenBatch>();
  batch->problem = problem;
  const LayerShape& s = problem.shape;
  if (batch->num_slots() >= kMaxSlots) {
    throw Error(ErrorKind::input,
                fmt::format("{} tokens for {} experts each: the sort kernel holds less than {} of "
                            "them; use at most {} tokens",
                            problem.num_tokens, s.top_k, kMaxSlots, (kMaxSlots - 1) / s.top_k));
  }
  const std::int64_t values = problem.num_tokens * s.hidden_size;
  batch->x = Buffer(bytes(values, 2));
  const unsigned long long x_seed = problem.seed * 4 + 3;
  launch(stream_, judge_.kernel("moetune_reference::fill_normal_bf16"),
         LaunchShape{dim3(4096), 256}, batch->x.get(), static_cast<long long>(values), 1.0f,
         x_seed);
  if (weights_.w13_q.size() > 0) {
    const bool block = fp8_dtype() == Dtype::fp8_block;
    batch->x_q = Buffer(bytes(values, 1));
    batch->x_scale =
        Buffer(bytes(problem.num_tokens * (block ? s.hidden_size / kScaleGroup : 1), 4));
    ActivateParams p{};
    p.in = batch->x.get();
    p.out = batch->x_q.get();
    p.scale = batch->x_scale.get<float>();
    p.rows = narrow(problem.num_tokens);
    p.columns = narrow(s.hidden_size);
    activate(ActivateInput::bf16, true, p);
  }
  for (int r = 0; r < num_routings; ++r) {
    const RoutingData data = make_routing(problem, r);
    DeviceRouting routing;
    routing.topk_ids = Buffer(data.topk_ids.size() * 4);
    routing.topk_ids.upload(data.topk_ids.data(), data.topk_ids.size() * 4);
    routing.topk_weights = Buffer(data.topk_weights.size() * 4);
    routing.topk_weights.upload(data.topk_weights.data(), data.topk_weights.size() * 4);
    routing.sorted.sorted_slots = Buffer(data.topk_ids.size() * 4);
    routing.sorted.positions = Buffer(data.topk_ids.size() * 4);
    routing.sorted.counts = Buffer(bytes(kSortBlocks * s.num_experts, 4));
    routing.sorted.num_tiles = Buffer(bytes(2, 4));
    for (Buffer& tiles : routing.sorted.tiles) {
      tiles = Buffer(bytes(max_row_tiles(batch->num_slots(), s.num_experts, 8), sizeof(RowTile)));
    }
    batch->routings.push_back(std::move(routing));
  }
  stream_.synchronize();
  return batch;
}

void Layer::prepare(Stage stage, const GemmStep* gemm1, const GemmStep* gemm2, TokenBatch& batch) {
  const LayerShape& s = problem_.shape;
  const std::int64_t slots = batch.num_slots();
  if (stage != Stage::gemm2) {
    const GemmLaunch& c = gemm1->shape;
    const std::int64_t columns = 2 * s.intermediate_size;
    if (c.output == Output::bf16) gate_up_.reserve(bytes(slots * columns, 2));
    if (c.output == Output::partial) gate_up_.reserve(bytes(slots * columns * c.split_k, 4));
    if (!c.gathers) {
      x_packed_.reserve(bytes(slots * s.hidden_size, c.fp8 ? 1 : 2));
      if (c.fp8)
        x_packed_scale_.reserve(static_cast<std::size_t>(packed_scale_bytes(slots, s.hidden_size)));
    }
  }
  activation_.reserve(bytes(slots * s.intermediate_size, 2));
  if ((gemm2 != nullptr ? gemm2 : gemm1)->fp8()) {
    activation_q_.reserve(bytes(slots * s.intermediate_size, 1));
    activation_scale_.reserve(
        static_cast<std::size_t>(packed_scale_bytes(slots, s.intermediate_size)));
  }
  if (stage != Stage::gemm1) {
    const GemmLaunch& c = gemm2->shape;
    if (!c.sums()) {
      y_.reserve(bytes(slots * s.hidden_size, c.output == Output::partial ? 4 * c.split_k : 2));
    }
    out_.reserve(bytes(batch.problem.num_tokens * s.hidden_size, 2));
    if (c.joins) tiles_done_.reserve(bytes(slots, 4));
  }
}

void Layer::sort_all(const GemmStep* gemm1, const GemmStep* gemm2, TokenBatch& batch) {
  for (int r = 0; r < static_cast<int>(batch.routings.size()); ++r)
    sort(gemm1, gemm2, false, batch, r);
  if (gemm1 != nullptr) return;
  const ReferenceOutput& reference = *batch.reference[gemm2->fp8() ? 1 : 0];
  const Buffer& rows = reference.gemm2_input;
  const dim3 grid(static_cast<unsigned>(batch.num_slots()));
  const int* const positions = batch.routings[0].sorted.positions.get<int>();
  launch(stream_, judge_.kernel("moetune_reference::reference_pack"), LaunchShape{grid, 256},
         rows.get(), positions, static_cast<long long>(rows.size()) / batch.num_slots(),
         (gemm2->fp8() ? activation_q_ : activation_).get());
  if (!gemm2->fp8()) return;
  const Buffer& scales = reference.gemm2_scale;
  launch(stream_, judge_.kernel("moetune_reference::reference_pack_scales"), LaunchShape{grid, 128},
         scales.get<float>(), positions,
         narrow(static_cast<std::int64_t>(scales.size()) / 4 / batch.num_slots()),
         static_cast<long long>(batch.num_slots()), activation_scale_.get<float>());
}

Matrix Layer::result(Stage stage, const GemmStep& last, const TokenBatch& batch) const {
  if (stage != Stage::gemm1) return {out_.get(), nullptr, Format::bf16, 1, 1};
  if (!last.fp8()) return {activation_.get(), nullptr, Format::bf16, 1, 1};
  const int group =
      fp8_dtype() == Dtype::fp8_block ? kScaleGroup : narrow(problem_.shape.intermediate_size);
  return {activation_q_.get(), activation_scale_.get<float>(), Format::e4m3, 1, group,
          batch.num_slots()};
}

void Layer::poison() {
  for (const Buffer* buffer : {&x_packed_, &x_packed_scale_, &gate_up_, &activation_,
                               &activation_q_, &activation_scale_, &y_, &out_}) {
    if (buffer->size() == 0) continue;
    check_cuda(cudaMemsetAsync(buffer->get(), 0xff, buffer->size(), stream_.get()), "memset");
  }
}

std::int64_t Layer::workspace_bytes() const {
  std::size_t sum = 0;
  for (const Buffer* buffer : {&x_packed_, &x_packed_scale_, &gate_up_, &activation_,
                               &activation_q_, &activation_scale_, &y_, &out_}) {
    sum += buffer->size();
  }
  return static_cast<std::int64_t>(sum);
}

}  // namespace moetune
