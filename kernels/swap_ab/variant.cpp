// Host half of the swapped grouped GEMM (moe_gemm.cu): space, rules, compilation, time model.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "kernels/expected.hpp"
#include "kernels/swap_ab/host.hpp"
#include "program/steps.hpp"

namespace moetune::swap_ab {
namespace {

class SwapAb final : public Variant {
 public:
  std::string_view name() const override { return "swap_ab"; }
  std::string_view help() const override {
    return "WGMMA + TMA grouped GEMM with weights as its M operand, for few rows; sm_90 only";
  }
  std::string_view source_file() const override { return "swap_ab/moe_gemm.cu"; }
  bool supports(const Gpu& gpu, Dtype) const override { return gpu.cc() == 90; }
  SearchSpace space(const Gpu& gpu, const Problem& problem, Stage stage,
                    Fp8Mode fp8) const override;
  KernelSource source(const Gpu& gpu, const Problem& problem, Stage stage,
                      const Point& point) const override;
  GemmLaunch launch(const Problem& problem, Stage stage, const Point& point) const override;
  double predict_us(const Gpu& gpu, const Problem& problem, Stage stage,
                    const Point& point) const override;
  std::vector<Plan> joined_plans(const Gpu& gpu, const Problem& problem,
                                 Fp8Mode fp8) const override;
  bool fuses_gemms(const Point& gemm2) const override {
    return gemm2.value_or("JOIN_GEMM1", 0) == 1;
  }
  void append_layer(ProgramBuilder& builder, const Plan& plan) const override;
};

// GEMM1's point where a GEMM2 of this point joins it.
Point joined_gemm1(const Point& gemm2) {
  Point point;
  for (const auto& [name, value] : gemm2.values()) {
    if (name != "FUSE_COMBINE" && name != "JOIN_GEMM1") point.set(name, value);
  }
  point.set("FUSE_SWIGLU", 1);
  return point;
}
bool joins(const Point& point) {
  return point.value_or("JOIN_GEMM1", 0) == 1;
}

SearchSpace SwapAb::space(const Gpu& gpu, const Problem& problem, Stage stage, Fp8Mode fp8) const {
  SearchSpace space;
  space.parameters = {
      {"BLOCK_SIZE_M", {8, 16, 32, 64, 128}, 16, "rows (token slots) of a tile"},
      {"BLOCK_SIZE_N", {64, 128, 256}, 128, "weight rows (output columns) of a tile"},
      {"NUM_WARPS", {4, 8}, 4, "warps that multiply; one more loads"},
      {"NUM_STAGES", {2, 3, 4, 5, 6, 8, 10, 12, 16, 20}, 5, "stages of 128 bytes of K"},
      {"LOAD_STEPS", {1, 2}, 1, "stages whose loads start together"},
      fp8_parameter(fp8),
      {"BLOCKS_PER_SM", {1, 2, 3, 4}, 2, "persistent thread blocks on a multiprocessor"}};
  if (stage == Stage::gemm1) {
    space.parameters.push_back(
        {"FUSE_SWIGLU", {0, 1}, 1, "1: SwiGLU in the GEMM's epilogue, 0: in its own kernel"});
  } else {
    space.parameters.push_back(fuse_combine());
    space.parameters.push_back({"JOIN_GEMM1",
                                {0, 1},
                                0,
                                "1: one launch does both GEMMs, GEMM1 with the same point and "
                                "FUSE_SWIGLU 1"});
  }

  space.rule("chunks", [problem, stage](const Point& p) -> Violation {
    const Config c = config_of(problem, stage, p);
    const int at_once = kWarpgroupRows * math_warpgroups(c) * (is_fused(c) ? 2 : 1);
    if (c.block_n % at_once == 0) return {};
    return fmt::format("{} warps take {} weight rows at a time", c.num_warps, at_once);
  });
  space.rule("registers", [problem, stage](const Point& p) -> Violation {
    const Config c = config_of(problem, stage, p);
    const int registers = std::min(65536 / c.blocks_per_sm / (num_threads(c) + 31) / 8 * 8, 255);
    const int need = accumulators(c) + c.block_m / 4 + 40;
    if (need <= registers) return {};
    return fmt::format("about {} registers a thread are needed, {} there", need, registers);
  });
  space.rule("loads", [](const Point& p) -> Violation {
    if (p.at("NUM_STAGES") >= 2 * p.at("LOAD_STEPS")) return {};
    return fmt::format("{} stages cannot be filled by {} while as many are read",
                       p.at("NUM_STAGES"), p.at("LOAD_STEPS"));
  });
  space.rule("shared_memory", [gpu, problem, stage](const Point& p) -> Violation {
    const Config c = config_of(problem, stage, p);
    const int need = swap_ab::smem_bytes(c);
    // A block's own 1024 bytes are the driver's.
    const int allowed =
        c.blocks_per_sm == 1 ? gpu.smem_per_block : gpu.smem_per_sm / c.blocks_per_sm - 1024;
    if (need <= allowed) return {};
    return fmt::format("needs {} bytes of shared memory, {} are allowed a block", need, allowed);
  });
  if (stage == Stage::gemm2) {
    space.spare("joined", [](const Point& p) -> Violation {
      if (!joins(p)) return {};
      return "with JOIN_GEMM1 1 there is no GEMM2 by itself: it is tried in whole layers";
    });
    space.rule("joined_gemm1", [gpu, problem, fp8](const Point& p) -> Violation {
      if (!joins(p)) return {};
      const Point first = joined_gemm1(p);
      const Config c = config_of(problem, Stage::gemm1, first);
      if (c.fp8 == 1 && c.output != Output::swiglu_fp8) {
        return "GEMM1 must quantise: block scales, BLOCK_SIZE_N 256";
      }
      SearchSpace space1 = find_variant("swap_ab").space(gpu, problem, Stage::gemm1, fp8);
      std::erase_if(space1.constraints, [](const Constraint& c1) { return c1.spares_search; });
      if (const auto rejection = space1.reject(first)) {
        return fmt::format("GEMM1: {}", rejection->reason);
      }
      return {};
    });
  }
  // Measured on an H200 (results/NVIDIA_H200/notes.md): bf16 2 to 4 % faster with 2, fp8 slower.
  space.spare("load_steps", [](const Point& p) -> Violation {
    const bool better = p.at("FP8") == 0 && p.at("NUM_STAGES") >= 5;
    if (p.at("LOAD_STEPS") == (better ? 2 : 1)) return {};
    return better ? "bf16 reads faster where neighbouring bytes of a row are asked for together"
                  : "fp8, and a ring of few stages, are better loaded one by one";
  });
  space.spare("padding", [problem](const Point& p) -> Violation {
    const double rows = mean_rows(problem);
    const int block_m = p.at("BLOCK_SIZE_M");
    if (block_m == 8 || rows + 2 * std::sqrt(rows) > block_m / 2.0) return {};
    return fmt::format("{:.1f} rows an expert mostly fit half a tile of {}", rows, block_m);
  });
  space.spare("many_rows", [problem](const Point& p) -> Violation {
    if (mean_rows(problem) <= 1.5 * p.at("BLOCK_SIZE_M")) return {};
    return fmt::format("{:.1f} rows an expert take several tiles of {}", mean_rows(problem),
                       p.at("BLOCK_SIZE_M"));
  });
  space.spare("shallow_pipeline", [problem, stage](const Point& p) -> Violation {
    const Config c = config_of(problem, stage, p);
    constexpr int kInFlight = 128 * 1024;  // hides memory's latency four times over
    const int in_flight = c.blocks_per_sm * c.num_stages * c.block_n * kRowBytes;
    if (in_flight >= kInFlight) return {};
    return fmt::format("{} KB of weights on their way to a multiprocessor are too few",
                       in_flight / 1024);
  });
  return space;
}

KernelSource SwapAb::source(const Gpu&, const Problem& problem, Stage stage,
                            const Point& point) const {
  const auto argument = [](const Config& c) {
    return fmt::format(
        "moetune::swap_ab::Config{{.block_m = {}, .block_n = {}, .num_warps = {}, .num_stages = "
        "{}, .load_steps = {}, .blocks_per_sm = {}, .fp8 = {}, .scales = moetune::Scales({}), "
        ".output = moetune::Output({}), .size_n = {}, .size_k = {}, .top_k = {}, .gather = {}}}",
        c.block_m, c.block_n, c.num_warps, c.num_stages, c.load_steps, c.blocks_per_sm, c.fp8,
        static_cast<int>(c.scales), static_cast<int>(c.output), c.size_n, c.size_k, c.top_k,
        c.gather);
  };
  const std::string own = argument(config_of(problem, stage, point));
  if (!joins(point)) {
    return {std::string(source_file()), {fmt::format("moetune::swap_ab::moe_gemm<{}>", own)}, {}};
  }
  const Config first = config_of(problem, Stage::gemm1, joined_gemm1(point));
  return {std::string(source_file()),
          {fmt::format("moetune::swap_ab::moe_joined<{}, {}>", argument(first), own)},
          {}};
}

GemmLaunch SwapAb::launch(const Problem& problem, Stage stage, const Point& point) const {
  const Config c = config_of(problem, stage, point);
  int smem_bytes = swap_ab::smem_bytes(c);
  if (joins(point)) {
    smem_bytes = swap_ab::smem_bytes(config_of(problem, Stage::gemm1, joined_gemm1(point)));
  }
  return {.num_threads = num_threads(c),
          .smem_bytes = smem_bytes,
          .block_m = c.block_m,
          .tile_columns = tile_columns(c),
          .group_m = 16,
          .column_major = false,
          .split_k = 1,
          .fp8 = c.fp8 == 1,
          .output = c.output,
          .gathers = c.gather == 1,
          .blocks_per_sm = c.blocks_per_sm,
          .cluster = 1,
          .w_box_rows = weight_box_rows(c),
          .a_box_rows = 0,
          .w_promotion = 128};  // 256 is 2 to 4 % slower (results/NVIDIA_H200/notes.md)
}

// Both GEMMs in one launch: GEMM2's tiles wait for the rows of GEMM1 that they read.
void SwapAb::append_layer(ProgramBuilder& builder, const Plan& plan) const {
  const GemmStep gemm1 = gemm_step(builder.gpu(), builder.problem(), Stage::gemm1, plan);
  const GemmStep gemm2 = gemm_step(builder.gpu(), builder.problem(), Stage::gemm2, plan);
  const GemmLaunch& c = gemm2.launch;
  append_sort(builder, {.gemm2 = &c,
                        .makes_x_for = &gemm1.launch,
                        .clears_out = c.sums(),
                        .clears_tiles_done = true,
                        .clears_tickets = false});
  Params<GemmParams> p1 = gemm_params(builder, Stage::gemm1, gemm1.launch, Stage::gemm2);
  const Params<GemmParams> p2 = gemm_params(builder, Stage::gemm2, c, Stage::gemm2);
  // A block takes its first ticket before it waits for the sort; the last one sets them back to 0.
  p1.bind(&GemmParams::tickets, builder.counter("joined_tickets", 8), Access::read_write);
  p1.bind(&GemmParams::tiles_done, tiles_done_tensor(builder), Access::read_write);

  const LayerShape& s = builder.shape();
  const auto weights = static_cast<double>(s.hidden_size * s.intermediate_size);
  const auto x = static_cast<double>(builder.problem().num_tokens * s.hidden_size);
  Work work;
  work.step = "GEMM1 + GEMM2";
  work.kernel = "moe_joined";
  work.bytes = value_bytes(x, gemm1.fp8()) + 2 * x;  // the activation may stay in L2
  work.weight_bytes_an_expert = weight_value_bytes(3 * weights, c.fp8);
  work.flops = 6 * static_cast<double>(builder.num_slots()) * weights;
  work.fp8 = c.fp8;
  const std::int64_t tiles =
      max_tiles(builder, Stage::gemm1, gemm1.launch) + max_tiles(builder, Stage::gemm2, c);
  const std::int64_t resident = std::int64_t{c.blocks_per_sm} * builder.gpu().num_sms;
  Op& op = builder.add(gemm2.source, gemm2.source.expressions.front(),
                       {.x = static_cast<unsigned>(std::min(tiles, resident)),
                        .threads = static_cast<unsigned>(c.num_threads),
                        .smem_bytes = static_cast<unsigned>(c.smem_bytes)},
                       std::move(work), p1, p2);
  ProgramBuilder::add_map(op, weight_map(builder, Stage::gemm1, gemm1.launch));
  ProgramBuilder::add_map(op, weight_map(builder, Stage::gemm2, c));
  append_end(builder, c);
}

// Of every tile and count of warps the points with the deepest ring.
std::vector<Plan> SwapAb::joined_plans(const Gpu& gpu, const Problem& problem, Fp8Mode fp8) const {
  SearchSpace space = this->space(gpu, problem, Stage::gemm2, fp8);
  std::erase_if(space.constraints, [](const Constraint& c) { return c.name == "joined"; });
  constexpr int kFewestStages = 3;
  const std::vector<int> stages = space.find("NUM_STAGES")->values;
  std::vector<Plan> plans;
  Point point = space.reference();
  point.set("JOIN_GEMM1", 1);
  const auto for_each = [&](const char* parameter, auto&& body) {
    for (const int value : space.find(parameter)->values) {
      point.set(parameter, value);
      body();
    }
  };
  const auto add_deepest = [&] {
    for (auto count = stages.rbegin(); count != stages.rend() && *count >= kFewestStages; ++count) {
      point.set("NUM_STAGES", *count);
      if (space.reject(point)) continue;
      const std::string variant(name());
      plans.push_back({{{"gemm1", variant, joined_gemm1(point)}, {"gemm2", variant, point}}});
      return;
    }
  };
  for_each("BLOCK_SIZE_M", [&] {
    for_each("BLOCK_SIZE_N", [&] {
      for_each("NUM_WARPS", [&] {
        for_each("LOAD_STEPS", [&] {
          for_each("BLOCKS_PER_SM", [&] { for_each("FUSE_COMBINE", add_deepest); });
        });
      });
    });
  });
  return plans;
}

// The time to read the weights, longer where tiles do not fill the grid evenly or too little is on
// its way. An ordering, not a measurement.
double SwapAb::predict_us(const Gpu& gpu, const Problem& problem, Stage stage,
                          const Point& point) const {
  const Config c = config_of(problem, stage, point);
  const double element = c.fp8 ? 1 : 2;
  const double gbps = gpu.read_gbps > 0 ? gpu.read_gbps : 1000;
  const double experts = active_experts(problem);
  const double row_tiles = experts * std::ceil(mean_rows(problem) / c.block_m);
  const double tiles = row_tiles * static_cast<double>(ceil_div(out_columns(c), tile_columns(c)));
  const double slots = static_cast<double>(gpu.num_sms) * c.blocks_per_sm;
  const double in_flight =
      std::min(tiles, slots) * c.num_stages * c.block_n * static_cast<double>(kRowBytes);
  const double latency_bound = in_flight / 1.0e-6 / 1e9;  // GB/s at about 1 us a round trip
  const double weights = experts * c.size_n * static_cast<double>(c.size_k) * element;
  const double uneven = tiles > slots ? 1 + 0.2 * slots / tiles : 1.2;
  const double read_us = weights / std::min(gbps, latency_bound) / 1e3 * uneven;

  // Clocks of a stage: weights read from shared memory, 128 bytes each, or multiplied.
  constexpr double kClockMhz = 1600;
  const double steps = static_cast<double>(ceil_div(c.size_k, step_k(c)));
  const double step = c.block_n * std::max(1.0, c.block_m / 32.0) +
                      (c.scales == Scales::block ? 150 + c.block_n * c.block_m / 64.0 : 50);
  const double math_us = std::ceil(tiles / slots) * c.blocks_per_sm * (steps * step + 600) /
                         std::min(c.blocks_per_sm, 2) / kClockMhz;

  const double rows = static_cast<double>(problem.num_tokens * problem.shape.top_k);
  double extra_bytes = rows * out_columns(c) * 2;
  if (stage == Stage::gemm1 && !is_fused(c)) extra_bytes *= 2;
  const bool another = stage == Stage::gemm1 ? !is_fused(c) || c.output == Output::swiglu
                                             : c.output != Output::weighted_sum;
  return std::max(read_us, math_us) + extra_bytes / gbps / 1e3 + 4 + (another && c.fp8 ? 1.5 : 0);
}

}  // namespace

Config config_of(const Problem& problem, Stage stage, const Point& point) {
  const bool first = stage == Stage::gemm1;
  const bool fp8 = point.at("FP8") == 1;
  const LayerShape& shape = problem.shape;
  Config c{.block_m = point.at("BLOCK_SIZE_M"),
           .block_n = point.at("BLOCK_SIZE_N"),
           .num_warps = point.at("NUM_WARPS"),
           .num_stages = point.at("NUM_STAGES"),
           .load_steps = point.at("LOAD_STEPS"),
           .blocks_per_sm = point.at("BLOCKS_PER_SM"),
           .fp8 = fp8 ? 1 : 0,
           .scales = !fp8                                 ? Scales::none
                     : problem.dtype == Dtype::fp8_tensor ? Scales::tensor
                                                          : Scales::block,
           .output = Output::bf16,
           .size_n = narrow(first ? 2 * shape.intermediate_size : shape.hidden_size),
           .size_k = narrow(first ? shape.hidden_size : shape.intermediate_size),
           .top_k = narrow(shape.top_k),
           .gather = first ? 1 : 0};
  if (point.value_or("FUSE_COMBINE", 0) == 1) c.output = Output::weighted_sum;
  if (point.value_or("FUSE_SWIGLU", 0) == 1) {
    // The epilogue quantises too where a tile holds whole scale groups.
    c.output = c.scales == Scales::block && c.block_n == 2 * kScaleGroup ? Output::swiglu_fp8
                                                                         : Output::swiglu;
  }
  return c;
}

std::unique_ptr<Variant> make_swap_ab() {
  return std::make_unique<SwapAb>();
}

}  // namespace moetune::swap_ab
