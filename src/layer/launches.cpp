// What a call of a layer enqueues: the sort, the GEMMs and the kernels between them, in order.
#include <fmt/format.h>

#include <algorithm>

#include "core/error.hpp"
#include "cuda/tensor_map.hpp"
#include "kernels/decode/config.hpp"
#include "layer/layer.hpp"

namespace moetune {
namespace {

constexpr int kSmallSortThreads = 256;  // or as many as there are experts
constexpr int kSortThreads = 1024;

}  // namespace

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

}  // namespace moetune
