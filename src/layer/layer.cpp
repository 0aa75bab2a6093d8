#include "layer/layer.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/error.hpp"
#include "cuda/tensor_map.hpp"
#include "kernels/decode/config.hpp"

namespace moetune {
namespace {

constexpr int kSmallSortThreads = 256;     // or as many as there are experts
constexpr std::int64_t kSortBlocks = 128;  // at most, for more
constexpr int kSortThreads = 1024;
constexpr std::int64_t kMaxExperts = 1024;
constexpr std::int64_t kMaxSlots = 1 << 21;  // small_kernels.cu counts them in 21 bits

std::size_t bytes(std::int64_t count, std::int64_t size) {
  return static_cast<std::size_t>(count) * static_cast<std::size_t>(size);
}
int narrow(std::int64_t value) {
  return static_cast<int>(value);
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

void Layer::sort(const GemmStep* gemm1, const GemmStep* gemm2, bool begins_call, TokenBatch& batch,
                 int routing) {
  const DeviceRouting& r = batch.routings[static_cast<std::size_t>(routing)];
  SortParams p{};
  p.topk_ids = r.topk_ids.get<int>();
  p.sorted_slots = r.sorted.sorted_slots.get<int>();
  p.positions = r.sorted.positions.get<int>();
  p.counts = r.sorted.counts.get<int>();
  for (int i = 0; i < 2; ++i) {
    const GemmStep* step = i == 0 ? gemm1 : gemm2;
    p.tiles[i] = r.sorted.tiles[i].get<RowTile>();
    p.num_tiles[i] = r.sorted.num_tiles.get<int>() + i;
    p.block_m[i] = step != nullptr ? step->shape.block_m : 0;
    p.group_m[i] = step != nullptr ? step->shape.group_m : 1;
  }
  p.num_slots = narrow(batch.num_slots());
  p.num_experts = narrow(problem_.shape.num_experts);
  if (gemm2 != nullptr && gemm2->shape.joins) p.tiles_done = tiles_done_.get<int>();
  const bool in_one_launch = p.num_slots <= kSmallSortSlots;
  const int threads =
      in_one_launch ? std::max(kSmallSortThreads, (p.num_experts + 31) / 32 * 32) : kSortThreads;
  p.slots_a_block = narrow(std::max<std::int64_t>(
      kSortThreads, (std::int64_t{p.num_slots} + kSortBlocks - 1) / kSortBlocks));
  p.sorting = in_one_launch ? 1 : (p.num_slots + p.slots_a_block - 1) / p.slots_a_block;
  const bool quantise = begins_call && gemm1->fp8() && gemm1->shape.gathers;
  ActivateParams x{};
  if (quantise) {
    x = x_rows(*gemm1, batch, routing);
    p.quantising = narrow(activate_blocks(true, x, threads));
  }
  const std::int64_t clearing = clear_output(gemm2, batch, p);
  launch(stream_, small_.kernel(sort_expression(in_one_launch, quantise, fp8_dtype())),
         shape(p.sorting + p.quantising + clearing, static_cast<unsigned>(threads)), p, x);
  if (in_one_launch) return;
  launch(stream_, small_.kernel("moetune::sort_place"), shape(p.sorting, kSortThreads), p);
}

std::int64_t Layer::clear_output(const GemmStep* gemm2, const TokenBatch& batch,
                                 SortParams& params) const {
  if (gemm2 == nullptr || !gemm2->shape.sums()) return 0;
  params.clear = out_.get();
  params.clear_bytes = batch.problem.num_tokens * problem_.shape.hidden_size * 2;
  return (params.clear_bytes + kClearBytes - 1) / kClearBytes;
}

ActivateParams Layer::x_rows(const GemmStep& gemm1, const TokenBatch& batch, int routing) const {
  const GemmLaunch& c = gemm1.shape;
  ActivateParams p{};
  p.in = batch.x.get();
  p.out = (c.gathers ? batch.x_q : x_packed_).get();
  p.scale = (c.gathers ? batch.x_scale : x_packed_scale_).get<float>();
  p.rows = narrow(batch.problem.num_tokens);
  p.columns = narrow(problem_.shape.hidden_size);
  if (!c.gathers) {
    const Sorted& sorted = batch.routings[static_cast<std::size_t>(routing)].sorted;
    p.scale_pitch = narrow(batch.num_slots());
    p.positions = sorted.positions.get<int>();
    p.top_k = narrow(problem_.shape.top_k);
  }
  return p;
}

GemmParams Layer::gemm_params(Stage stage, const GemmStep& step, TokenBatch& batch,
                              int routing) const {
  const Sorted& sorted = batch.routings[static_cast<std::size_t>(routing)].sorted;
  const GemmLaunch& c = step.shape;
  const bool first = stage == Stage::gemm1;
  const int which = first ? 0 : 1;
  GemmParams p{};
  if (first) {
    p.a = (!c.gathers ? x_packed_ : c.fp8 ? batch.x_q : batch.x).get();
    p.a_scale = c.fp8 ? (c.gathers ? batch.x_scale : x_packed_scale_).get<float>() : nullptr;
    p.w = (c.fp8 ? weights_.w13_q : weights_.w13).get();
    p.w_scale = c.fp8 ? weights_.w13_scale.get<float>() : nullptr;
    p.out = (c.output == Output::swiglu       ? activation_
             : c.output == Output::swiglu_fp8 ? activation_q_
                                              : gate_up_)
                .get();
    p.out_scale = activation_scale_.get<float>();
  } else {
    p.a = (c.fp8 ? activation_q_ : activation_).get();
    p.a_scale = c.fp8 ? activation_scale_.get<float>() : nullptr;
    p.w = (c.fp8 ? weights_.w2_q : weights_.w2).get();
    p.w_scale = c.fp8 ? weights_.w2_scale.get<float>() : nullptr;
    p.out = (c.sums() ? out_ : y_).get();
    p.topk_weights = batch.routings[static_cast<std::size_t>(routing)].topk_weights.get<float>();
  }
  p.tickets = tickets_.get<int>() + (first ? 0 : 2);
  p.sorted_slots = sorted.sorted_slots.get<int>();
  p.tiles = sorted.tiles[which].get<RowTile>();
  p.num_tiles = sorted.num_tiles.get<int>() + which;
  p.num_slots = narrow(batch.num_slots());
  p.scale_pitch = narrow(batch.num_slots());
  p.column_major = c.column_major ? 1 : 0;
  p.split_k = c.split_k;
  return p;
}

std::int64_t Layer::max_tiles(Stage stage, const GemmLaunch& c, const TokenBatch& batch) const {
  const LayerShape& s = problem_.shape;
  const bool halves = c.output == Output::swiglu || c.output == Output::swiglu_fp8;
  const std::int64_t columns = stage == Stage::gemm2 ? s.hidden_size
                               : halves              ? s.intermediate_size
                                                     : 2 * s.intermediate_size;
  return max_row_tiles(batch.num_slots(), s.num_experts, c.block_m) *
         ((columns + c.tile_columns - 1) / c.tile_columns);
}

void Layer::joined(const GemmStep& gemm1, const GemmStep& gemm2, TokenBatch& batch, int routing) {
  const LayerShape& s = problem_.shape;
  GemmParams p1 = gemm_params(Stage::gemm1, gemm1, batch, routing);
  const GemmParams p2 = gemm_params(Stage::gemm2, gemm2, batch, routing);
  p1.tiles = p2.tiles;
  p1.num_tiles = p2.num_tiles;
  p1.tiles_done = tiles_done_.get<int>();
  const GemmLaunch& c = gemm2.shape;
  const std::int64_t tiles =
      max_tiles(Stage::gemm1, gemm1.shape, batch) + max_tiles(Stage::gemm2, c, batch);
  LaunchShape shape = this->shape(std::min(tiles, std::int64_t{c.blocks_per_sm} * gpu_.num_sms),
                                  static_cast<unsigned>(c.num_threads));
  shape.smem_bytes = static_cast<unsigned>(c.smem_bytes);
  const std::int64_t element = c.fp8 ? 1 : 2;
  const TensorMap w1(p1.w, s.num_experts * 2 * s.intermediate_size, s.hidden_size, element,
                     gemm1.shape.w_box_rows, c.w_promotion);
  const TensorMap w2(p2.w, s.num_experts * s.hidden_size, s.intermediate_size, element,
                     c.w_box_rows, c.w_promotion);
  launch(stream_, gemm2.kernel, shape, p1, p2, w1.value, w2.value);
}

void Layer::decode(const GemmStep& step, TokenBatch& batch, int routing) {
  const DeviceRouting& r = batch.routings[static_cast<std::size_t>(routing)];
  const GemmLaunch& c = step.shape;
  if (batch.num_slots() > decode::kMaxSlots) {
    throw Error(ErrorKind::input,
                fmt::format("{} tokens for {} experts each: the decode variant sorts at most {} "
                            "slots; use another variant",
                            batch.problem.num_tokens, problem_.shape.top_k, decode::kMaxSlots));
  }
  const decode::Params p{
      .x = batch.x.get(),
      .w13 = (c.fp8 ? weights_.w13_q : weights_.w13).get(),
      .w2 = (c.fp8 ? weights_.w2_q : weights_.w2).get(),
      .w13_scale = c.fp8 ? weights_.w13_scale.get<float>() : nullptr,
      .w2_scale = c.fp8 ? weights_.w2_scale.get<float>() : nullptr,
      .topk_ids = r.topk_ids.get<int>(),
      .topk_weights = r.topk_weights.get<float>(),
      .activation = activation_.get(),
      .out = out_.get(),
      .counters = decode_counters_.get<unsigned long long>() + std::ptrdiff_t{2} * c.blocks_per_sm,
      .num_slots = narrow(batch.num_slots())};
  LaunchShape shape = this->shape(std::int64_t{c.blocks_per_sm} * gpu_.num_sms,
                                  static_cast<unsigned>(c.num_threads));
  shape.smem_bytes = static_cast<unsigned>(c.smem_bytes);
  launch(stream_, step.kernel, shape, p);
}

void Layer::gemm(Stage stage, const GemmStep& step, TokenBatch& batch, int routing) {
  const LayerShape& s = problem_.shape;
  const GemmLaunch& c = step.shape;
  const bool first = stage == Stage::gemm1;
  const std::int64_t size_n = first ? 2 * s.intermediate_size : s.hidden_size;
  const std::int64_t size_k = first ? s.hidden_size : s.intermediate_size;
  const GemmParams p = gemm_params(stage, step, batch, routing);
  const std::int64_t tiles = max_tiles(stage, c, batch);
  const std::int64_t resident = std::int64_t{c.blocks_per_sm} * gpu_.num_sms;
  const std::int64_t blocks = tiles * c.cluster;
  LaunchShape shape = this->shape(resident > 0 ? std::min(blocks, resident) : blocks,
                                  static_cast<unsigned>(c.num_threads));
  shape.cluster = static_cast<unsigned>(c.cluster);
  shape.grid.y = static_cast<unsigned>(c.split_k);
  shape.smem_bytes = static_cast<unsigned>(c.smem_bytes);
  if (!c.uses_tma()) {
    launch(stream_, step.kernel, shape, p);
    return;
  }
  const std::int64_t element = c.fp8 ? 1 : 2;
  const TensorMap w(p.w, s.num_experts * size_n, size_k, element, c.w_box_rows, c.w_promotion);
  const TensorMap a = c.a_box_rows > 0
                          ? TensorMap(p.a, batch.num_slots(), size_k, element, c.a_box_rows)
                          : TensorMap();
  launch(stream_, step.kernel, shape, p, w.value, a.value);
}

// Blocks that `activate` is launched with: one a row where a row has one scale.
std::int64_t Layer::activate_blocks(bool to_fp8, const ActivateParams& p, int threads) const {
  if (to_fp8 && fp8_dtype() == Dtype::fp8_tensor) return p.rows;
  return (std::int64_t{p.rows} * ((p.columns + kScaleGroup - 1) / kScaleGroup) + threads / 16 - 1) /
         (threads / 16);
}

void Layer::activate(ActivateInput input, bool to_fp8, const ActivateParams& p) {
  const auto output = !to_fp8                            ? ActivateOutput::bf16
                      : fp8_dtype() == Dtype::fp8_tensor ? ActivateOutput::fp8_tensor
                                                         : ActivateOutput::fp8_block;
  launch(stream_, small_.kernel(activate_expression(input, output)),
         shape(activate_blocks(to_fp8, p, 256), 256), p);
}

void Layer::enqueue(Stage stage, const GemmStep* gemm1, const GemmStep* gemm2, TokenBatch& batch,
                    int routing) {
  const LayerShape& s = problem_.shape;
  const std::int64_t slots = batch.num_slots();
  const bool whole = stage == Stage::layer;
  if (whole && gemm2->shape.whole_layer) return decode(*gemm2, batch, routing);
  if (whole) sort(gemm1, gemm2, true, batch, routing);
  const bool joins = whole && gemm2->shape.joins;
  if (joins) joined(*gemm1, *gemm2, batch, routing);
  if (stage != Stage::gemm2 && !joins) {
    const Output output = gemm1->shape.output;
    if (!gemm1->shape.gathers || (gemm1->fp8() && !whole)) {
      activate(ActivateInput::bf16, gemm1->fp8(), x_rows(*gemm1, batch, routing));
    }
    const bool to_fp8 = (gemm2 != nullptr ? gemm2 : gemm1)->fp8();
    gemm(Stage::gemm1, *gemm1, batch, routing);
    const bool done = output == Output::swiglu_fp8 || (output == Output::swiglu && !to_fp8);
    if (!done) {
      const auto input = output == Output::swiglu    ? ActivateInput::bf16
                         : output == Output::partial ? ActivateInput::partial
                                                     : ActivateInput::gate_up;
      ActivateParams p{};
      p.in = (output == Output::swiglu ? activation_ : gate_up_).get();
      p.out = (to_fp8 ? activation_q_ : activation_).get();
      p.scale = activation_scale_.get<float>();
      p.rows = narrow(slots);
      p.columns = narrow(s.intermediate_size);
      p.splits = gemm1->shape.split_k;
      p.after_gemm1 = to_fp8 ? 1 : 0;
      p.scale_pitch = narrow(slots);
      activate(input, to_fp8, p);
    }
  }
  if (stage != Stage::gemm1) {
    SortParams cleared{};  // in a whole layer the sort clears
    if (const std::int64_t clearing = whole ? 0 : clear_output(gemm2, batch, cleared);
        clearing > 0) {
      launch(stream_, small_.kernel("moetune::clear"), shape(clearing, 256), cleared);
    }
    if (!joins) gemm(Stage::gemm2, *gemm2, batch, routing);
    if (gemm2->shape.sums()) return;
    const DeviceRouting& r = batch.routings[static_cast<std::size_t>(routing)];
    const CombineParams p{y_.get(),
                          r.sorted.positions.get<int>(),
                          r.topk_weights.get<float>(),
                          out_.get(),
                          narrow(batch.problem.num_tokens),
                          narrow(s.top_k),
                          narrow(s.hidden_size),
                          gemm2->shape.output == Output::partial ? gemm2->shape.split_k : 0};
    const std::int64_t threads = batch.problem.num_tokens * s.hidden_size / 8;
    launch(stream_, small_.kernel(combine_expression(s.top_k)), shape((threads + 255) / 256, 256),
           p);
  }
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
