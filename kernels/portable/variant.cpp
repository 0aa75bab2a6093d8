// Host half of the portable grouped GEMM (moe_gemm.cu): space, rules, compilation, time model.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/error.hpp"
#include "kernels/expected.hpp"
#include "kernels/portable/config.hpp"
#include "kernels/portable/host.hpp"
#include "kernels/variant.hpp"

namespace moetune {
namespace {

// Tiles of a point's grid, expected.
double expected_tiles(const Problem& problem, Stage stage, const Point& point) {
  const double row_tiles =
      active_experts(problem) * std::ceil(mean_rows(problem) / point.at("BLOCK_SIZE_M"));
  const std::int64_t columns =
      stage == Stage::gemm1 ? 2 * problem.shape.intermediate_size : problem.shape.hidden_size;
  return row_tiles * static_cast<double>(ceil_div(columns, point.at("BLOCK_SIZE_N")));
}

constexpr double kRowsWorthAtomics = 16;  // an expert has, at most

class Portable final : public Variant {
 public:
  std::string_view name() const override { return "portable"; }
  std::string_view help() const override {
    return "mma.sync + cp.async grouped GEMM, padding-free gathered rows; sm_80 and later";
  }
  std::string_view source_file() const override { return "portable/moe_gemm.cu"; }
  bool supports(const Gpu& gpu, Dtype dtype) const override {
    return is_fp8(dtype) ? gpu.cc() >= 89 : gpu.cc() >= 80;
  }
  SearchSpace space(const Gpu& gpu, const Problem& problem, Stage stage,
                    Fp8Mode fp8) const override;
  KernelSource source(const Gpu& gpu, const Problem& problem, Stage stage,
                      const Point& point) const override;
  GemmLaunch launch(const Problem& problem, Stage stage, const Point& point) const override;
  double predict_us(const Gpu& gpu, const Problem& problem, Stage stage,
                    const Point& point) const override;
};

SearchSpace Portable::space(const Gpu& gpu, const Problem& problem, Stage stage,
                            Fp8Mode fp8) const {
  SearchSpace space;
  std::vector<int> block_k{64, 128};
  if (fp8 != Fp8Mode::off) block_k.push_back(256);
  space.parameters = {
      {"BLOCK_SIZE_M", {16, 32, 64, 128, 160, 256, 512}, 64, "rows (token slots) of a tile"},
      {"BLOCK_SIZE_N", {32, 64, 128, 256, 512}, 64, "weight rows (output columns) of a tile"},
      {"BLOCK_SIZE_K", block_k, fp8 == Fp8Mode::on ? 128 : 64, "K elements of a pipeline stage"},
      {"NUM_WARPS", {2, 4, 8, 16, 32}, 4, "warps of a thread block"},
      {"NUM_STAGES", {2, 3, 4, 5, 6, 8}, 2, "depth of the cp.async pipeline"},
      fp8_parameter(fp8),
      {"GROUP_SIZE_M", {1, 16}, 1, "row tiles walked together before the next column tile"},
      {"ORDER", {0, 1}, 0, "0: row-major walk over tiles, 1: column-major"},
      {"SPLIT_K", {1, 2, 4}, 1, "thread blocks that share one tile's K range"}};
  if (stage == Stage::gemm1) {
    space.parameters.push_back(
        {"FUSE_SWIGLU", {0, 1}, 0, "1: SwiGLU in the GEMM's epilogue, 0: in its own kernel"});
  } else {
    space.parameters.push_back(fuse_combine());
  }

  space.spare("tile_order", [gpu, problem, stage](const Point& p) -> Violation {
    if (p.at("ORDER") == 1 && p.at("GROUP_SIZE_M") != 1) {
      return "GROUP_SIZE_M only acts on the row-major walk (ORDER 0): the same program";
    }
    if (p.at("ORDER") == 0 && p.at("GROUP_SIZE_M") == 1) return {};
    if (mean_rows(problem) <= p.at("BLOCK_SIZE_M")) {
      return fmt::format("{:.0f} rows an expert are one row tile: all walks are the same",
                         mean_rows(problem));
    }
    const GemmConfig c = gemm_config(problem, stage, p);
    const double bytes = static_cast<double>(c.size_n) * c.size_k * (c.fp8 ? 1 : 2);
    if (bytes <= static_cast<double>(gpu.l2_bytes) / 4) {
      return fmt::format("an expert's {:.1f} MB of weights stay in L2 on every walk", bytes / 1e6);
    }
    return {};
  });
  space.rule("fp8", [gpu, problem](const Point& p) -> Violation {
    if (p.at("FP8") == 0) {
      if (p.at("BLOCK_SIZE_K") > 128) return "BLOCK_SIZE_K 256 is for fp8";
      return {};
    }
    if (gpu.cc() < 89) return "no e4m3 matrix instructions before sm_89";
    return {};
  });
  space.rule("block_shape", [](const Point& p) -> Violation {
    // Measured on an H200 (results/NVIDIA_H200/notes.md): none of these came within noise of the
    // best where rows are many, nor ahead of it where they are few.
    if (p.at("NUM_WARPS") > 16) {
      return fmt::format("{} warps: at most 64 registers a thread and one block an SM",
                         p.at("NUM_WARPS"));
    }
    if (p.at("BLOCK_SIZE_M") > 256 || p.at("BLOCK_SIZE_N") > 256) {
      return fmt::format("a {}x{} tile leaves one block an SM, and its barriers stall all of it",
                         p.at("BLOCK_SIZE_M"), p.at("BLOCK_SIZE_N"));
    }
    return {};
  });
  space.rule("split_k_fused", [](const Point& p) -> Violation {
    if (p.at("SPLIT_K") > 1 && p.value_or("FUSE_SWIGLU", 0) == 1) {
      return "partial sums of a split K cannot go through SwiGLU in the epilogue";
    }
    if (p.at("SPLIT_K") > 1 && p.value_or("FUSE_COMBINE", 0) == 1) {
      return "partial sums of a split K are added in fp32, the fused weighted sum is in bf16";
    }
    return {};
  });
  space.rule("bf16_atomics", [gpu](const Point& p) -> Violation {
    if (p.value_or("FUSE_COMBINE", 0) == 1 && gpu.cc() < 90) {
      return "no atomic addition of bf16 before sm_90";
    }
    return {};
  });
  space.spare("combine", [problem](const Point& p) -> Violation {
    if (p.value_or("FUSE_COMBINE", 0) == 1 && mean_rows(problem) > kRowsWorthAtomics) {
      return fmt::format("{:.0f} rows an expert would add to their tokens by 4 bytes at a time",
                         mean_rows(problem));
    }
    return {};
  });
  space.rule("warp_tile", [problem, stage](const Point& p) -> Violation {
    const GemmConfig c = gemm_config(problem, stage, p);
    if (warps_m(c) == 0) {
      return fmt::format("{} warps cannot share a {}x{} tile in multiples of 16x{}", c.num_warps,
                         c.block_m, c.block_n, min_warp_n(c));
    }
    const int chunks = row_bytes(c) / 16;
    if (moetune::num_threads(c) % (chunks * 8) != 0) {
      return fmt::format("{} threads cannot load rows of {} bytes evenly", moetune::num_threads(c),
                         row_bytes(c));
    }
    if (c.block_n * chunks < moetune::num_threads(c)) {
      return fmt::format("{} warps are more than a {}-column tile of weights can feed", c.num_warps,
                         c.block_n);
    }
    return {};
  });
  space.rule("accumulators", [problem, stage](const Point& p) -> Violation {
    const GemmConfig c = gemm_config(problem, stage, p);
    // 65,536 registers an SM, 255 a thread; operands and addresses take about 48, the temporaries
    // and widened operands of block scales twice that.
    const bool scaled = c.scales == Scales::block;
    const int registers = std::min(255, 65536 / moetune::num_threads(c));
    const int limit = std::min(scaled ? 64 : 160, registers - (scaled ? 96 : 48));
    if (accumulators(c) > limit) {
      return fmt::format("{} accumulators a thread, at most {} fit the register file",
                         accumulators(c), limit);
    }
    const int least = c.num_warps > 4 ? 8 : 4;
    if (accumulators(c) < least) {
      return fmt::format("{} accumulators a thread: too many warps for the tile", accumulators(c));
    }
    return {};
  });
  space.rule("shared_memory", [gpu, problem, stage](const Point& p) -> Violation {
    const int need = moetune::smem_bytes(gemm_config(problem, stage, p));
    if (need > gpu.smem_per_block) {
      return fmt::format("needs {} bytes of shared memory, the GPU allows {} a block", need,
                         gpu.smem_per_block);
    }
    return {};
  });
  space.spare("deep_pipeline", [problem, stage](const Point& p) -> Violation {
    const GemmConfig c = gemm_config(problem, stage, p);
    // About 64 KB in flight an SM hide the memory's latency (Little's law at 4.6 TB/s and 1 us).
    if (c.num_stages > 4 && (c.num_stages - 2) * stage_bytes(c) > 96 * 1024) {
      return fmt::format("{} stages of {} bytes: fewer already keep the memory busy", c.num_stages,
                         stage_bytes(c));
    }
    return {};
  });
  space.spare("k_steps", [problem, stage](const Point& p) -> Violation {
    const GemmConfig c = gemm_config(problem, stage, p);
    const auto steps = ceil_div(ceil_div(c.size_k, c.block_k), p.at("SPLIT_K"));
    if (c.num_stages > std::max<std::int64_t>(2, steps + 1)) {
      return fmt::format("{} stages for {} K steps: a shallower pipeline holds them all",
                         c.num_stages, steps);
    }
    return {};
  });
  space.spare("split_k_full", [gpu, problem, stage](const Point& p) -> Violation {
    if (p.at("SPLIT_K") == 1) return {};
    const double tiles = expected_tiles(problem, stage, p);
    if (tiles >= 2.0 * gpu.num_sms) {
      return fmt::format("{:.0f} tiles fill {} SMs without splitting K", tiles, gpu.num_sms);
    }
    return {};
  });
  space.spare("padding", [problem](const Point& p) -> Violation {
    const double rows = mean_rows(problem);
    const int m = p.at("BLOCK_SIZE_M");
    if (m > 64 && m >= 8 * rows) {
      return fmt::format("{} rows a tile for {:.1f} rows an expert: half the tile would do", m,
                         rows);
    }
    return {};
  });
  space.spare("traffic", [problem](const Point& p) -> Violation {
    const double rows = mean_rows(problem);
    const int m = p.at("BLOCK_SIZE_M");
    const int n = p.at("BLOCK_SIZE_N");
    if (rows >= 8.0 * m) {
      return fmt::format("{:.0f} rows an expert would read its weights for {:.0f} row tiles", rows,
                         std::ceil(rows / m));
    }
    if (rows >= 96 && m * n < 32 * (m + n)) {
      return fmt::format("a {}x{} tile re-reads operands too often for {:.0f} rows an expert", m, n,
                         rows);
    }
    return {};
  });
  return space;
}

KernelSource Portable::source(const Gpu&, const Problem& problem, Stage stage,
                              const Point& point) const {
  const GemmConfig c = gemm_config(problem, stage, point);
  return {std::string(source_file()),
          {fmt::format("moetune::moe_gemm<moetune::GemmConfig{{.block_m = {}, .block_n = {}, "
                       ".block_k = {}, .num_warps = {}, .num_stages = {}, .fp8 = {}, .scales = "
                       "moetune::Scales({}), .output = moetune::Output({}), .size_n = {}, "
                       ".size_k = {}, .top_k = {}, .gather = {}}}>",
                       c.block_m, c.block_n, c.block_k, c.num_warps, c.num_stages, c.fp8,
                       static_cast<int>(c.scales), static_cast<int>(c.output), c.size_n, c.size_k,
                       c.top_k, c.gather)},
          {}};
}

GemmLaunch Portable::launch(const Problem& problem, Stage stage, const Point& point) const {
  const GemmConfig c = gemm_config(problem, stage, point);
  return {.num_threads = moetune::num_threads(c),
          .smem_bytes = moetune::smem_bytes(c),
          .block_m = c.block_m,
          .tile_columns = c.output == Output::swiglu ? c.block_n / 2 : c.block_n,
          .group_m = point.at("GROUP_SIZE_M"),
          .column_major = point.at("ORDER") == 1,
          .split_k = point.at("SPLIT_K"),
          .fp8 = c.fp8 == 1,
          .output = c.output};
}

// Roofline with waves: bytes over bandwidth and padded flops over an mma.sync rate that grows with
// the tile, the last wave counted whole. An ordering, not a measurement.
double Portable::predict_us(const Gpu& gpu, const Problem& problem, Stage stage,
                            const Point& point) const {
  const GemmConfig c = gemm_config(problem, stage, point);
  const double experts = active_experts(problem);
  const double row_tiles = experts * std::ceil(mean_rows(problem) / c.block_m);
  const double tiles = expected_tiles(problem, stage, point) * point.at("SPLIT_K");
  const double element = c.fp8 ? 1 : 2;
  const double weights = experts * c.size_n * static_cast<double>(c.size_k) * element;
  const double gbps = gpu.read_gbps > 0 ? gpu.read_gbps : 1000;
  const double rate = (gpu.bf16_tflops > 0 ? gpu.bf16_tflops : 100) * 0.6;  // mma.sync's share

  const int smem = std::max(1, moetune::smem_bytes(c));
  const int blocks_per_sm =
      std::clamp(gpu.smem_per_sm / (smem + 1024), 1, 2048 / (c.num_warps * 32));
  const double slots = static_cast<double>(gpu.num_sms) * blocks_per_sm;
  const double waves = std::ceil(tiles / slots) / (tiles / slots);
  const double in_flight = std::min(tiles, slots) * (c.num_stages - 1) * c.block_n * row_bytes(c);
  const double latency_bound = in_flight / 1.0e-6 / 1e9;  // GB/s at about 1 us a round trip
  const double read_us = weights / std::min(gbps, latency_bound) / 1e3;
  const double intensity = static_cast<double>(c.block_m) * c.block_n / (c.block_m + c.block_n);
  const double flops = 2.0 * row_tiles * c.block_m * c.size_n * static_cast<double>(c.size_k);
  const double math_us = flops / (rate * std::min(1.0, intensity / 64)) / 1e6 * waves;
  const double rows = static_cast<double>(problem.num_tokens * problem.shape.top_k);
  double extra_bytes = rows * c.size_n * 2;
  if (c.output == Output::partial) extra_bytes = rows * c.size_n * 8.0 * point.at("SPLIT_K");
  if (c.output == Output::bf16 && stage == Stage::gemm1) extra_bytes *= 2;
  return std::max(read_us, math_us) + extra_bytes / gbps / 1e3 + 4;
}

}  // namespace

GemmConfig gemm_config(const Problem& problem, Stage stage, const Point& point) {
  const bool first = stage == Stage::gemm1;
  const bool fp8 = point.at("FP8") == 1;
  const LayerShape& shape = problem.shape;
  return GemmConfig{.block_m = point.at("BLOCK_SIZE_M"),
                    .block_n = point.at("BLOCK_SIZE_N"),
                    .block_k = point.at("BLOCK_SIZE_K"),
                    .num_warps = point.at("NUM_WARPS"),
                    .num_stages = point.at("NUM_STAGES"),
                    .fp8 = fp8 ? 1 : 0,
                    .scales = !fp8                                 ? Scales::none
                              : problem.dtype == Dtype::fp8_tensor ? Scales::tensor
                                                                   : Scales::block,
                    .output = point.at("SPLIT_K") > 1                  ? Output::partial
                              : point.value_or("FUSE_SWIGLU", 0) == 1  ? Output::swiglu
                              : point.value_or("FUSE_COMBINE", 0) == 1 ? Output::weighted_sum
                                                                       : Output::bf16,
                    .size_n = narrow(first ? 2 * shape.intermediate_size : shape.hidden_size),
                    .size_k = narrow(first ? shape.hidden_size : shape.intermediate_size),
                    .top_k = narrow(shape.top_k),
                    .gather = first ? 1 : 0};
}

std::unique_ptr<Variant> make_portable() {
  return std::make_unique<Portable>();
}

Plan reference_plan(const Gpu&, const Problem&) {
  Point point({{"BLOCK_SIZE_M", 64},
               {"BLOCK_SIZE_N", 64},
               {"BLOCK_SIZE_K", 64},
               {"NUM_WARPS", 4},
               {"NUM_STAGES", 2},
               {"FP8", 0},
               {"GROUP_SIZE_M", 1},
               {"ORDER", 0},
               {"SPLIT_K", 1}});
  Point first = point;
  first.set("FUSE_SWIGLU", 0);
  Point second = point;
  second.set("FUSE_COMBINE", 0);
  const std::string variant(kReferenceVariant);
  return Plan{{{"gemm1", variant, first}, {"gemm2", variant, second}}};
}

}  // namespace moetune
