#include "program/steps.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "core/error.hpp"
#include "kernels/expected.hpp"
#include "kernels/support/support.hpp"

namespace moetune {
namespace {

constexpr int kSmallSortThreads = 256;  // or as many as there are experts
constexpr int kSortThreads = 1024;
constexpr std::int64_t kSortBlocks = 128;  // at most, where one block does not sort all
constexpr int kActivateThreads = 256;

double as_double(std::int64_t value) {
  return static_cast<double>(value);
}
double x_values(const ProgramBuilder& builder) {
  return as_double(builder.problem().num_tokens * builder.shape().hidden_size);
}
double activation_values(const ProgramBuilder& builder) {
  return as_double(builder.num_slots() * builder.shape().intermediate_size);
}
double y_values(const ProgramBuilder& builder) {
  return as_double(builder.num_slots() * builder.shape().hidden_size);
}
double stored_bytes(const GemmLaunch& launch, double values) {
  return launch.output == Output::partial ? 4 * values * launch.split_k : 2 * values;
}
bool halves(const GemmLaunch& gemm1) {
  return gemm1.output == Output::swiglu || gemm1.output == Output::swiglu_fp8;
}

Work small_work(std::string step, std::string kernel, double bytes) {
  Work work;
  work.step = std::move(step);
  work.kernel = std::move(kernel);
  work.bytes = bytes;
  return work;
}

std::int64_t scale_bytes(const ProgramBuilder& builder, std::int64_t rows, std::int64_t columns) {
  return builder.fp8_dtype() == Dtype::fp8_tensor ? 4 * rows : packed_scale_bytes(rows, columns);
}

TensorId sorted_slots(ProgramBuilder& b) {
  return b.scratch("sorted_slots", 4 * b.num_slots());
}
TensorId positions(ProgramBuilder& b) {
  return b.scratch("positions", 4 * b.num_slots());
}
TensorId tickets(ProgramBuilder& b) {
  return b.scratch("tickets", std::int64_t{4} * kNumTickets);
}
// What kernels after the sort read.
TensorId fp32_weights(ProgramBuilder& b) {
  return b.layout().bf16_topk_weights ? b.scratch("topk_weights_fp32", 4 * b.num_slots())
                                      : TensorId{tensor::topk_weights};
}
TensorId num_tiles(ProgramBuilder& b) {
  return b.scratch("num_tiles", 8);
}

// In the format that GEMM2 reads.
struct Rows {
  TensorId values;
  TensorId scales;  // -1: bf16
};
Rows activation(ProgramBuilder& b, bool fp8) {
  const std::int64_t columns = b.shape().intermediate_size;
  if (!fp8) return {b.scratch("activation", 2 * b.num_slots() * columns), -1};
  return {b.scratch("activation_q", b.num_slots() * columns),
          b.scratch("activation_scale", packed_scale_bytes(b.num_slots(), columns))};
}
std::int64_t pitch_or(std::int64_t pitch, std::int64_t columns) {
  return pitch > 0 ? pitch : columns;
}
// What GEMM1 reads.
Rows x_rows(ProgramBuilder& b, const GemmLaunch& gemm1) {
  const std::int64_t columns = b.shape().hidden_size;
  if (gemm1.gathers) {
    if (!gemm1.fp8) return {x_without_gaps(b), -1};
    const std::int64_t tokens = b.problem().num_tokens;
    return {b.scratch("x_q", tokens * columns),
            b.scratch("x_scale", scale_bytes(b, tokens, columns))};
  }
  if (!gemm1.fp8) return {b.scratch("x_packed", 2 * b.num_slots() * columns), -1};
  return {b.scratch("x_packed_q", b.num_slots() * columns),
          b.scratch("x_packed_scale", packed_scale_bytes(b.num_slots(), columns))};
}
TensorId gate_up(ProgramBuilder& b, const GemmLaunch& gemm1) {
  const std::int64_t values = 2 * b.num_slots() * b.shape().intermediate_size;
  return b.scratch("gate_up",
                   gemm1.output == Output::partial ? 4 * values * gemm1.split_k : 2 * values);
}
TensorId y(ProgramBuilder& b, const GemmLaunch& gemm2) {
  const std::int64_t values = b.num_slots() * b.shape().hidden_size;
  return b.scratch("y", gemm2.output == Output::partial ? 4 * values * gemm2.split_k : 2 * values);
}

Params<ActivateParams> x_rows_params(ProgramBuilder& b, const GemmLaunch& gemm1) {
  const Rows rows = x_rows(b, gemm1);
  Params<ActivateParams> p;
  p.bind(&ActivateParams::in, tensor::x, Access::read);
  p.bind(&ActivateParams::out, rows.values, Access::write);
  if (rows.scales >= 0) p.bind(&ActivateParams::scale, rows.scales, Access::write);
  p.value.rows = narrow(b.problem().num_tokens);
  p.value.columns = narrow(b.shape().hidden_size);
  p.value.in_pitch = narrow(pitch_or(b.layout().x_pitch, b.shape().hidden_size));
  p.value.out_pitch = p.value.columns;
  if (!gemm1.gathers) {
    p.value.scale_pitch = narrow(b.num_slots());
    p.bind(&ActivateParams::positions, positions(b), Access::read);
    p.value.top_k = narrow(b.shape().top_k);
  }
  return p;
}

// Blocks that `activate` is launched with: one a row where a row has one scale.
std::int64_t activate_blocks(const ProgramBuilder& b, bool to_fp8, const ActivateParams& p,
                             int threads) {
  if (to_fp8 && b.fp8_dtype() == Dtype::fp8_tensor) return p.rows;
  return ceil_div(std::int64_t{p.rows} * ceil_div(p.columns, kScaleGroup), threads / 16);
}

Op& add_small(ProgramBuilder& b, const std::string& expression, std::int64_t blocks, int threads,
              Work work, const auto&... params) {
  return b.add(small_kernels(b.problem()), expression,
               {.x = static_cast<unsigned>(blocks), .threads = static_cast<unsigned>(threads)},
               std::move(work), params...);
}

void add_activate(ProgramBuilder& b, ActivateInput input, bool to_fp8,
                  const Params<ActivateParams>& p, Work work) {
  const auto output = !to_fp8                              ? ActivateOutput::bf16
                      : b.fp8_dtype() == Dtype::fp8_tensor ? ActivateOutput::fp8_tensor
                                                           : ActivateOutput::fp8_block;
  add_small(b, activate_expression(input, output),
            activate_blocks(b, to_fp8, p.value, kActivateThreads), kActivateThreads,
            std::move(work), p);
}

std::int64_t bind_clear(ProgramBuilder& b, Params<SortParams>& p) {
  p.bind(&SortParams::clear, out_without_gaps(b), Access::write);
  p.value.clear_bytes = b.problem().num_tokens * b.shape().hidden_size * 2;
  return ceil_div(p.value.clear_bytes, kClearBytes);
}

// GEMM1's products are of both halves of w13.
double gemm_weights(const ProgramBuilder& b, Stage stage) {
  return (stage == Stage::gemm1 ? 2 : 1) *
         as_double(b.shape().hidden_size * b.shape().intermediate_size);
}
std::int64_t out_columns(const ProgramBuilder& b, Stage stage, const GemmLaunch& launch) {
  const LayerShape& s = b.shape();
  if (stage == Stage::gemm2) return s.hidden_size;
  return halves(launch) ? s.intermediate_size : 2 * s.intermediate_size;
}

}  // namespace

double value_bytes(double count, bool fp8) {
  return fp8 ? count * (1 + 4.0 / kScaleGroup) : 2 * count;
}
double weight_value_bytes(double count, bool fp8) {
  return fp8 ? count * (1 + 4.0 / (kScaleGroup * kScaleGroup)) : 2 * count;
}

GemmStep gemm_step(const Gpu& gpu, const Problem& problem, Stage stage, const Plan& plan) {
  const Step* const step = plan.find(to_string(stage));
  if (step == nullptr) {
    throw Error(ErrorKind::input, fmt::format("the plan lacks its step {}", to_string(stage)));
  }
  const Variant& variant = find_variant(step->variant);
  return {variant.source(gpu, problem, stage, step->point),
          variant.launch(problem, stage, step->point)};
}

TensorId tiles_tensor(ProgramBuilder& b, Stage stage, int block_m) {
  const std::int64_t tiles = max_row_tiles(b.num_slots(), b.shape().num_experts, block_m);
  return b.scratch(stage == Stage::gemm1 ? "gemm1_tiles" : "gemm2_tiles",
                   tiles * static_cast<std::int64_t>(sizeof(RowTile)));
}

TensorId tiles_done_tensor(ProgramBuilder& b) {
  return b.scratch("tiles_done", 4 * b.num_slots());
}

void append_sort(ProgramBuilder& b, const SortStep& step) {
  const bool in_one_launch = b.num_slots() <= kSmallSortSlots;
  const int num_experts = narrow(b.shape().num_experts);
  const int threads =
      in_one_launch ? std::max(kSmallSortThreads, (num_experts + 31) / 32 * 32) : kSortThreads;
  const std::int64_t slots_a_block =
      std::max<std::int64_t>(kSortThreads, ceil_div(b.num_slots(), kSortBlocks));
  const std::int64_t sorting = in_one_launch ? 1 : ceil_div(b.num_slots(), slots_a_block);
  // Where two launches sort, the first counts and the second places what it has counted.
  const auto sort_params = [&](bool counts, bool places) {
    Params<SortParams> p;
    p.value.num_slots = narrow(b.num_slots());
    p.value.slots_a_block = narrow(slots_a_block);
    p.value.sorting = narrow(sorting);
    bind_ids(b, p, p.value.ids);
    if (!in_one_launch) {
      p.bind(&SortParams::counts, b.scratch("counts", 4 * sorting * num_experts),
             counts ? Access::write : Access::read);
    }
    if (!places) return p;
    p.bind(&SortParams::sorted_slots, sorted_slots(b), Access::write);
    p.bind(&SortParams::positions, positions(b), Access::write);
    if (step.clears_tickets) p.bind(&SortParams::tickets, tickets(b), Access::write);
    if (b.layout().bf16_topk_weights) {
      bind_weights(b, p, p.value.weights);
      p.bind(&SortParams::fp32_weights, fp32_weights(b), Access::write);
    }
    const std::pair<Stage, const GemmLaunch*> gemms[] = {{Stage::gemm1, step.gemm1},
                                                         {Stage::gemm2, step.gemm2}};
    for (std::size_t i = 0; i < 2; ++i) {
      const auto& [stage, launch] = gemms[i];
      p.value.group_m[i] = 1;
      if (launch == nullptr) continue;
      p.bind(&SortParams::tiles, i, tiles_tensor(b, stage, launch->block_m), Access::write);
      p.bind(&SortParams::num_tiles, i, num_tiles(b), Access::write,
             static_cast<std::int64_t>(i) * 4);
      p.value.block_m[i] = launch->block_m;
      p.value.group_m[i] = launch->group_m;
    }
    if (step.clears_tiles_done)
      p.bind(&SortParams::tiles_done, tiles_done_tensor(b), Access::write);
    return p;
  };

  const double slots = as_double(b.num_slots());
  Work work = small_work("sort", in_one_launch ? "sort_small" : "sort_count",
                         (in_one_launch ? 12 : 4) * slots);
  Params<SortParams> p = sort_params(true, in_one_launch);
  Params<ActivateParams> x;
  Beside beside = Beside::nothing;
  if (const GemmLaunch* const gemm1 = step.makes_x_for;
      gemm1 != nullptr && (gemm1->fp8 || b.layout().x_pitch > 0)) {
    beside = !gemm1->fp8                          ? Beside::copy
             : b.fp8_dtype() == Dtype::fp8_tensor ? Beside::fp8_tensor
                                                  : Beside::fp8_block;
    x = x_rows_params(b, *gemm1);
    p.value.beside = narrow(activate_blocks(b, gemm1->fp8, x.value, threads));
    work.step += gemm1->fp8 ? ", quantise x" : ", copy x";
    work.bytes += 2 * x_values(b) + value_bytes(x_values(b), gemm1->fp8);
  }
  std::int64_t clearing = 0;
  if (step.clears_out) {
    clearing = bind_clear(b, p);
    work.step += ", clear";
    work.bytes += 2 * x_values(b);
  }
  add_small(b, sort_expression(in_one_launch, beside), p.value.sorting + p.value.beside + clearing,
            threads, std::move(work), p, x);
  if (in_one_launch) return;
  add_small(b, "moetune::sort_place", sorting, kSortThreads,
            small_work("sort: place", "sort_place", 12 * slots), sort_params(false, true));
}

void append_x_rows(ProgramBuilder& b, const GemmLaunch& gemm1) {
  const Params<ActivateParams> p = x_rows_params(b, gemm1);
  const double rows = gemm1.gathers ? x_values(b) : y_values(b);
  add_activate(b, ActivateInput::bf16, gemm1.fp8, p,
               small_work(gemm1.gathers ? "quantise x" : "pack x", "activate",
                          2 * x_values(b) + value_bytes(rows, gemm1.fp8)));
}

Params<GemmParams> gemm_params(ProgramBuilder& b, Stage stage, const GemmLaunch& launch,
                               Stage tiles_of) {
  const bool first = stage == Stage::gemm1;
  Params<GemmParams> p;
  const auto bind_rows = [&](const Rows& rows) {
    p.bind(&GemmParams::a, rows.values, Access::read);
    if (rows.scales >= 0) p.bind(&GemmParams::a_scale, rows.scales, Access::read);
  };
  if (first) {
    bind_rows(x_rows(b, launch));
    p.bind(&GemmParams::w, tensor::w13, Access::read);
    if (launch.fp8) p.bind(&GemmParams::w_scale, tensor::w13_scale, Access::read);
    if (halves(launch)) {
      const Rows out = activation(b, launch.output == Output::swiglu_fp8);
      p.bind(&GemmParams::out, out.values, Access::write);
      if (out.scales >= 0) p.bind(&GemmParams::out_scale, out.scales, Access::write);
    } else {
      p.bind(&GemmParams::out, gate_up(b, launch), Access::write);
    }
  } else {
    bind_rows(activation(b, launch.fp8));
    p.bind(&GemmParams::w, tensor::w2, Access::read);
    if (launch.fp8) p.bind(&GemmParams::w_scale, tensor::w2_scale, Access::read);
    if (launch.sums()) {
      p.bind(&GemmParams::out, out_without_gaps(b), Access::read_write);
    } else {
      p.bind(&GemmParams::out, y(b, launch), Access::write);
    }
    p.bind(&GemmParams::topk_weights, fp32_weights(b), Access::read);
  }
  p.bind(&GemmParams::sorted_slots, sorted_slots(b), Access::read);
  p.bind(&GemmParams::tiles, tiles_tensor(b, tiles_of, launch.block_m), Access::read);
  p.bind(&GemmParams::num_tiles, num_tiles(b), Access::read, tiles_of == Stage::gemm1 ? 0 : 4);
  p.value.num_slots = narrow(b.num_slots());
  p.value.scale_pitch = narrow(b.num_slots());
  p.value.column_major = launch.column_major ? 1 : 0;
  p.value.split_k = launch.split_k;
  return p;
}

std::optional<TensorMapSpec> weight_map(const ProgramBuilder& b, Stage stage,
                                        const GemmLaunch& launch) {
  if (!launch.uses_tma()) return {};
  const LayerShape& s = b.shape();
  const bool first = stage == Stage::gemm1;
  const std::int64_t columns = first ? s.hidden_size : s.intermediate_size;
  const std::int64_t rows = first ? 2 * s.intermediate_size : s.hidden_size;
  return TensorMapSpec{
      .tensor = first ? tensor::w13 : tensor::w2,
      .rows = s.num_experts * rows,
      .columns = columns,
      .pitch = pitch_or(first ? b.layout().w13_pitch : b.layout().w2_pitch, columns),
      .element_bytes = launch.fp8 ? 1 : 2,
      .box_rows = launch.w_box_rows,
      .promotion = launch.w_promotion};
}

std::int64_t max_tiles(const ProgramBuilder& b, Stage stage, const GemmLaunch& launch) {
  return max_row_tiles(b.num_slots(), b.shape().num_experts, launch.block_m) *
         ceil_div(out_columns(b, stage, launch), launch.tile_columns);
}

void append_gemm(ProgramBuilder& b, Stage stage, const GemmStep& step) {
  const GemmLaunch& c = step.launch;
  const bool first = stage == Stage::gemm1;
  const double rows = !first || !c.gathers ? 1.0 : 0.0;  // packed, or gathered from x
  Work work = small_work(first ? "GEMM1" : "GEMM2", "moe_gemm", 0);
  if (first) {
    const double made = halves(c)
                            ? value_bytes(activation_values(b), c.output == Output::swiglu_fp8)
                            : stored_bytes(c, 2 * activation_values(b));
    work.bytes = value_bytes(rows > 0 ? y_values(b) : x_values(b), c.fp8) + made;
  } else {
    work.bytes = value_bytes(activation_values(b), c.fp8) +
                 (c.sums() ? 2 * x_values(b) : stored_bytes(c, y_values(b)));
  }
  work.weight_bytes_an_expert = weight_value_bytes(gemm_weights(b, stage), c.fp8);
  work.flops = 2 * as_double(b.num_slots()) * gemm_weights(b, stage);
  work.fp8 = c.fp8;
  work.block_m = c.block_m;
  work.column_tiles = ceil_div(out_columns(b, stage, c), c.tile_columns);
  work.tiles_at_once = std::int64_t{c.blocks_per_sm} * b.gpu().num_sms / c.cluster;

  const std::int64_t blocks = max_tiles(b, stage, c) * c.cluster;
  const std::int64_t resident = std::int64_t{c.blocks_per_sm} * b.gpu().num_sms;
  const Grid grid{.x = static_cast<unsigned>(resident > 0 ? std::min(blocks, resident) : blocks),
                  .y = static_cast<unsigned>(c.split_k),
                  .threads = static_cast<unsigned>(c.num_threads),
                  .smem_bytes = static_cast<unsigned>(c.smem_bytes),
                  .cluster = static_cast<unsigned>(c.cluster)};
  Params<GemmParams> p = gemm_params(b, stage, c, stage);
  p.bind(&GemmParams::tickets, tickets(b), Access::read_write, first ? 0 : 4 * kNumTickets / 2);
  Op& op = b.add(step.source, step.source.expressions.front(), grid, std::move(work), p);
  if (!c.uses_tma()) return;
  ProgramBuilder::add_map(op, weight_map(b, stage, c));
  std::optional<TensorMapSpec> a;
  if (c.a_box_rows > 0) {
    const std::int64_t columns = first ? b.shape().hidden_size : b.shape().intermediate_size;
    a = TensorMapSpec{.tensor = p.uses().front().tensor,
                      .rows = b.num_slots(),
                      .columns = columns,
                      .pitch = columns,
                      .element_bytes = c.fp8 ? 1 : 2,
                      .box_rows = c.a_box_rows};
  }
  ProgramBuilder::add_map(op, a);
}

void append_activation(ProgramBuilder& b, const GemmLaunch& gemm1, bool to_fp8) {
  const Output output = gemm1.output;
  if (output == Output::swiglu_fp8 || (output == Output::swiglu && !to_fp8)) return;
  const bool only_quantises = output == Output::swiglu;
  const Rows out = activation(b, to_fp8);
  Params<ActivateParams> p;
  p.bind(&ActivateParams::in, only_quantises ? activation(b, false).values : gate_up(b, gemm1),
         Access::read);
  p.bind(&ActivateParams::out, out.values, Access::write);
  if (out.scales >= 0) p.bind(&ActivateParams::scale, out.scales, Access::write);
  p.value.rows = narrow(b.num_slots());
  p.value.columns = narrow(b.shape().intermediate_size);
  p.value.in_pitch = p.value.columns;
  p.value.out_pitch = p.value.columns;
  p.value.splits = gemm1.split_k;
  p.value.after_gemm1 = to_fp8 ? 1 : 0;
  p.value.scale_pitch = narrow(b.num_slots());
  const auto input = only_quantises              ? ActivateInput::bf16
                     : output == Output::partial ? ActivateInput::partial
                                                 : ActivateInput::gate_up;
  const double made =
      only_quantises ? 2 * activation_values(b) : stored_bytes(gemm1, 2 * activation_values(b));
  const char* const name = only_quantises ? "quantise"
                           : to_fp8       ? "activation, quantise"
                                          : "activation";
  add_activate(b, input, to_fp8, p,
               small_work(name, "activate", made + value_bytes(activation_values(b), to_fp8)));
}

void append_clear(ProgramBuilder& b) {
  Params<SortParams> p;
  const std::int64_t blocks = bind_clear(b, p);
  add_small(b, "moetune::clear", blocks, kActivateThreads,
            small_work("clear", "clear", 2 * x_values(b)), p);
}

TensorId x_without_gaps(ProgramBuilder& b) {
  if (b.layout().x_pitch == 0) return tensor::x;
  return b.scratch("x_rows", 2 * b.problem().num_tokens * b.shape().hidden_size);
}

TensorId out_without_gaps(ProgramBuilder& b) {
  if (b.layout().out_pitch == 0) return tensor::out;
  return b.scratch("out_rows", 2 * b.problem().num_tokens * b.shape().hidden_size);
}

namespace {

void append_copy(ProgramBuilder& b, const char* step, TensorId from, std::int64_t in_pitch,
                 TensorId to, std::int64_t out_pitch) {
  const std::int64_t columns = b.shape().hidden_size;
  Params<ActivateParams> p;
  p.bind(&ActivateParams::in, from, Access::read);
  p.bind(&ActivateParams::out, to, Access::write);
  p.value.rows = narrow(b.problem().num_tokens);
  p.value.columns = narrow(columns);
  p.value.in_pitch = narrow(pitch_or(in_pitch, columns));
  p.value.out_pitch = narrow(pitch_or(out_pitch, columns));
  add_activate(b, ActivateInput::bf16, false, p, small_work(step, "activate", 4 * x_values(b)));
}

}  // namespace

void append_x_without_gaps(ProgramBuilder& b) {
  if (b.layout().x_pitch > 0)
    append_copy(b, "copy x", tensor::x, b.layout().x_pitch, x_without_gaps(b), 0);
}

void append_out_with_gaps(ProgramBuilder& b) {
  if (b.layout().out_pitch > 0)
    append_copy(b, "copy out", out_without_gaps(b), 0, tensor::out, b.layout().out_pitch);
}

void append_end(ProgramBuilder& b, const GemmLaunch& gemm2) {
  if (gemm2.sums()) return append_out_with_gaps(b);
  Params<CombineParams> p;
  p.bind(&CombineParams::y, y(b, gemm2), Access::read);
  p.bind(&CombineParams::positions, positions(b), Access::read);
  p.bind(&CombineParams::topk_weights, fp32_weights(b), Access::read);
  p.bind(&CombineParams::out, tensor::out, Access::write);
  p.value.num_tokens = narrow(b.problem().num_tokens);
  p.value.top_k = narrow(b.shape().top_k);
  p.value.columns = narrow(b.shape().hidden_size);
  p.value.out_pitch = narrow(pitch_or(b.layout().out_pitch, b.shape().hidden_size));
  p.value.splits = gemm2.output == Output::partial ? gemm2.split_k : 0;
  constexpr int kThreads = 256;  // of eight columns each
  add_small(b, combine_expression(b.shape().top_k),
            ceil_div(b.problem().num_tokens * b.shape().hidden_size / 8, kThreads), kThreads,
            small_work("combine", "combine", stored_bytes(gemm2, y_values(b)) + 2 * x_values(b)),
            p);
}

}  // namespace moetune
