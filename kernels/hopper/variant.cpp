// Host half of the Hopper grouped GEMM (moe_gemm.cu): space, rules, compilation, time model.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "kernels/expected.hpp"
#include "kernels/hopper/host.hpp"

namespace moetune {
namespace {

// WGMMA widths that sm90.cuh wraps.
bool has_wgmma(int columns) {
  for (const int known : {32, 64, 96, 128, 192, 256})
    if (columns == known) return true;
  return false;
}

// 64-row pieces and row tiles that an expert's rows take, on average: a count that varies ends
// anywhere in its last piece.
double expected_pieces(const Problem& problem, int rows) {
  const double mean = mean_rows(problem);
  const double spread = 2 * std::sqrt(mean);
  return mean + spread <= rows ? 1.0 : std::max(1.0, mean / rows + 0.5);
}

class Hopper final : public Variant {
 public:
  std::string_view name() const override { return "hopper"; }
  std::string_view help() const override {
    return "WGMMA + TMA grouped GEMM, warp-specialised and persistent; sm_90 only";
  }
  std::string_view source_file() const override { return "hopper/moe_gemm.cu"; }
  bool supports(const Gpu& gpu, Dtype) const override { return gpu.cc() == 90; }
  SearchSpace space(const Gpu& gpu, const Problem& problem, Stage stage,
                    Fp8Mode fp8) const override;
  KernelSource source(const Gpu& gpu, const Problem& problem, Stage stage,
                      const Point& point) const override;
  GemmLaunch launch(const Problem& problem, Stage stage, const Point& point) const override;
  double predict_us(const Gpu& gpu, const Problem& problem, Stage stage,
                    const Point& point) const override;
};

SearchSpace Hopper::space(const Gpu& gpu, const Problem& problem, Stage stage, Fp8Mode fp8) const {
  SearchSpace space;
  space.parameters = {
      {"BLOCK_SIZE_M", {64, 128, 192, 256}, 128, "rows (token slots) of a tile"},
      {"BLOCK_SIZE_N", {64, 128, 192, 256}, 128, "weight rows (output columns) of a tile"},
      {"NUM_WARPS", {4, 8, 12, 16}, 8, "warps that multiply; four more load"},
      {"PING_PONG", {0, 1}, 0, "1: four warps have a tile of their own, 0: all share one"},
      {"CLUSTER_SIZE", {1, 2}, 1, "blocks, one tile below or beside the other, that share loads"},
      {"NUM_STAGES", {2, 3, 4, 5, 6, 8, 10}, 5, "stages of 128 bytes of K"},
      fp8_parameter(fp8),
      {"BLOCKS_PER_SM", {1, 2}, 1, "persistent thread blocks on a multiprocessor"},
      {"GROUP_SIZE_M", {1, 4, 8, 16}, 1, "an expert's row tiles walked together, at most"},
      {"ORDER", {0, 1}, 0, "0: row-major walk over tiles, 1: column-major"}};
  if (stage == Stage::gemm1) {
    space.parameters.push_back(
        {"FUSE_SWIGLU", {0, 1}, 1, "1: SwiGLU in the GEMM's epilogue, 0: in its own kernel"});
    space.parameters.push_back(
        {"GATHER", {0, 1}, 1, "1: the GEMM gathers its rows, 0: a kernel packs them before"});
  } else {
    space.parameters.push_back(fuse_combine());
  }

  space.rule("warpgroups", [](const Point& p) -> Violation {
    const int groups = p.at("NUM_WARPS") / 4;
    const int along_m = p.at("BLOCK_SIZE_M") / kWarpgroupRows;
    if (p.at("PING_PONG") == 1) {
      if (groups == 2 || groups == 3) return {};
      return fmt::format("ping-pong takes 2 or 3 warpgroups, not {}", groups);
    }
    if (groups % along_m != 0 || groups / along_m > 2) {
      return fmt::format("{} rows are {} warpgroups of 64, or twice as many side by side",
                         p.at("BLOCK_SIZE_M"), along_m);
    }
    return {};
  });
  space.rule("cluster", [](const Point& p) -> Violation {
    if (p.at("CLUSTER_SIZE") > 1 && p.at("BLOCKS_PER_SM") > 1) {
      return "clusters take a multiprocessor a block";
    }
    if (p.at("CLUSTER_SIZE") > 1 && p.value_or("GATHER", 0) == 1) {
      return "the blocks of a cluster load for each other: rows must lie packed, GATHER 0";
    }
    return {};
  });
  space.rule("wgmma", [problem, stage](const Point& p) -> Violation {
    const HopperConfig c = hopper_config(problem, stage, p);
    const int columns = warpgroup_columns(c) / num_chunks(c);
    if (c.block_n % warpgroups_n(c) != 0 || !has_wgmma(columns)) {
      return fmt::format("no WGMMA of {} columns here", columns);
    }
    if ((tile_columns(c) / warpgroups_n(c)) % 64 != 0) {
      return fmt::format("a warpgroup stores multiples of 64 columns, not {}",
                         tile_columns(c) / warpgroups_n(c));
    }
    return {};
  });
  space.rule("scale_block", [problem, stage](const Point& p) -> Violation {
    const HopperConfig c = hopper_config(problem, stage, p);
    if (c.scales != Scales::block) return {};
    if (kScaleGroup % std::min(tile_columns(c), kScaleGroup) != 0 ||
        tile_columns(c) % std::min(tile_columns(c), kScaleGroup) != 0) {
      return fmt::format("{} columns cross a weight scale's 128", tile_columns(c));
    }
    return {};
  });
  space.rule("accumulators", [problem, stage](const Point& p) -> Violation {
    const HopperConfig c = hopper_config(problem, stage, p);
    const int registers = std::max(math_registers(c), launch_registers(c));
    if (accumulators(c) + 28 > registers) {
      return fmt::format("{} accumulators a thread do not fit {} registers", accumulators(c),
                         registers);
    }
    // ptxas wants one instruction's operands to fit what the block is launched with.
    const int operands = warpgroup_columns(c) / num_chunks(c) / 2 + 26;
    if (operands > launch_registers(c)) {
      return fmt::format("a WGMMA's {} registers exceed the {} that {} threads start with",
                         operands, launch_registers(c), c.blocks_per_sm * moetune::num_threads(c));
    }
    return {};
  });
  space.rule("shared_memory", [gpu, problem, stage](const Point& p) -> Violation {
    const HopperConfig c = hopper_config(problem, stage, p);
    const int need = moetune::smem_bytes(c);
    // A block's own 1024 bytes are the driver's.
    const int allowed =
        c.blocks_per_sm == 1 ? gpu.smem_per_block : gpu.smem_per_sm / c.blocks_per_sm - 1024;
    if (need > allowed) {
      return fmt::format("needs {} bytes of shared memory, {} are allowed a block", need, allowed);
    }
    return {};
  });
  space.spare("tile_order", [gpu, problem, stage](const Point& p) -> Violation {
    if (p.at("ORDER") == 1 && p.at("GROUP_SIZE_M") != 1) {
      return "GROUP_SIZE_M only acts on the row-major walk (ORDER 0): the same program";
    }
    if (p.at("ORDER") == 0 && p.at("GROUP_SIZE_M") == 1) return {};
    if (mean_rows(problem) <= p.at("BLOCK_SIZE_M")) {
      return fmt::format("{:.0f} rows an expert are one row tile: all walks are the same",
                         mean_rows(problem));
    }
    const HopperConfig c = hopper_config(problem, stage, p);
    const double rows = static_cast<double>(problem.num_tokens * problem.shape.top_k);
    const double activations = rows * c.size_k * (c.fp8 ? 1 : 2);
    if (p.at("ORDER") == 1 && activations > static_cast<double>(gpu.l2_bytes) / 2) {
      return fmt::format("{:.0f} MB of activations do not stay in L2 from column to column",
                         activations / 1e6);
    }
    return {};
  });
  space.spare("packing", [problem](const Point& p) -> Violation {
    if (p.value_or("GATHER", 1) == 0 && mean_rows(problem) < kWarpgroupRows) {
      return fmt::format(
          "{:.1f} rows an expert: reading weights takes the time, packing adds to it",
          mean_rows(problem));
    }
    return {};
  });
  space.spare("few_rows", [problem](const Point& p) -> Violation {
    const double rows = mean_rows(problem);
    const int tile_rows = p.at("BLOCK_SIZE_M");
    if (tile_rows > 64 && rows + 2 * std::sqrt(rows) <= tile_rows - 64) {
      return fmt::format("{:.1f} rows an expert leave 64 rows of a tile of {} idle", rows,
                         tile_rows);
    }
    return {};
  });
  space.spare("shallow_pipeline", [problem, stage](const Point& p) -> Violation {
    const HopperConfig c = hopper_config(problem, stage, p);
    const int spare_bytes = (c.blocks_per_sm == 1 ? 232448 : 115 * 1024) - moetune::smem_bytes(c);
    const int steps = (c.size_k + step_k(c) - 1) / step_k(c);
    // Bytes in flight hide latency: half the shared memory or more, or the next count of stages
    // would not fit.
    if (c.num_stages < 8 && c.num_stages < steps &&
        spare_bytes > moetune::smem_bytes(c) + 16 * 1024) {
      return fmt::format("{} stages leave more than half the shared memory unused", c.num_stages);
    }
    return {};
  });
  return space;
}

KernelSource Hopper::source(const Gpu&, const Problem& problem, Stage stage,
                            const Point& point) const {
  const HopperConfig c = hopper_config(problem, stage, point);
  return {
      std::string(source_file()),
      {fmt::format("moetune::moe_gemm_sm90<moetune::HopperConfig{{.block_m = {}, .block_n = {}, "
                   ".num_warps = {}, .ping_pong = {}, .cluster = {}, .num_stages = {}, "
                   ".blocks_per_sm = {}, .fp8 = {}, .scales = moetune::Scales({}), .output = "
                   "moetune::Output({}), .size_n = {}, "
                   ".size_k = {}, .top_k = {}, .gather = {}}}>",
                   c.block_m, c.block_n, c.num_warps, c.ping_pong, c.cluster, c.num_stages,
                   c.blocks_per_sm, c.fp8, static_cast<int>(c.scales), static_cast<int>(c.output),
                   c.size_n, c.size_k, c.top_k, c.gather)},
      {}};
}

GemmLaunch Hopper::launch(const Problem& problem, Stage stage, const Point& point) const {
  const HopperConfig c = hopper_config(problem, stage, point);
  return {.num_threads = moetune::num_threads(c),
          .smem_bytes = moetune::smem_bytes(c),
          .block_m = c.block_m * c.cluster,
          .tile_columns = moetune::tile_columns(c),
          .group_m = point.at("GROUP_SIZE_M"),
          .column_major = point.at("ORDER") == 1,
          .split_k = 1,
          .fp8 = c.fp8 == 1,
          .output = c.output,
          .gathers = c.gather == 1,
          .blocks_per_sm = c.blocks_per_sm,
          .cluster = c.cluster,
          .w_box_rows = weight_box_rows(c),
          .a_box_rows = c.gather == 1 ? 0 : kRowBoxRows};
}

// Clocks of a tile (the slower of the tensor cores and L2 for each stage, then the epilogue) times
// tiles a multiprocessor, or the memory's time. The constants were fitted to recorded searches
// on an H100 and an H200 (results/*/notes.md): there the best of the first five is 2.3 % behind the
// best on average. An ordering, not a measurement.
double Hopper::predict_us(const Gpu& gpu, const Problem& problem, Stage stage,
                          const Point& point) const {
  const HopperConfig c = hopper_config(problem, stage, point);
  constexpr double kClockMhz = 1600;
  constexpr double kL2BytesPerClock = 42;     // an SM gets
  constexpr double kStoreBytesPerClock = 24;  // an epilogue stores
  const bool block_scales = c.scales == Scales::block;
  const bool two_blocks = c.blocks_per_sm > 1;
  const bool alone = c.ping_pong == 1 || math_warpgroups(c) == 1;
  const double element = c.fp8 ? 1 : 2;
  const double gbps = gpu.read_gbps > 0 ? gpu.read_gbps : 1000;
  const double experts = active_experts(problem);
  const double tile_rows = c.block_m * c.cluster;
  const double row_tiles = experts * expected_pieces(problem, c.block_m);
  const double waves = experts * expected_pieces(problem, kWarpgroupRows) / row_tiles;
  const double tiles =
      row_tiles * static_cast<double>(ceil_div(moetune::out_columns(c), moetune::tile_columns(c)));
  const double steps = static_cast<double>(ceil_div(c.size_k, step_k(c)));

  // Narrow WGMMA read shared memory too often; a warpgroup alone leaves the tensor cores idle while
  // it waits for its own, and with block scales while it applies them.
  const double width =
      block_scales ? std::min(warpgroup_columns(c), kMaxScaledColumns) : warpgroup_columns(c);
  const double tensor = waves * 2 * c.block_n * ((block_scales ? 1.1 : 1.0) + 16 / width);
  const double drain = !block_scales ? (alone ? 40 : 20) : two_blocks ? 20 : alone ? 250 : 60;
  const double side_by_side =
      alone ? 1 : std::max(1.0, std::min<double>(math_warpgroups(c), waves));
  const double scaling = block_scales ? 60 * waves * c.block_n / 128 / side_by_side : 0;
  const double l2 = (std::min<double>(c.block_m, waves * kWarpgroupRows) +
                     static_cast<double>(c.block_n) / c.cluster) *
                    kRowBytes / kL2BytesPerClock;
  double step = std::max(tensor + drain + scaling, l2);
  if (c.gather == 1) step *= c.fp8 ? 1.06 : 1.1;  // rows gathered 16 bytes at a time
  if (c.cluster > 1) step *= 1.1;                 // blocks that wait for each other
  if (c.num_stages < 4 && !two_blocks) step += 30 * (4 - c.num_stages);

  const double out_bytes = c.output == Output::swiglu_fp8 ? 1 : 2;
  const double stored = waves * kWarpgroupRows * moetune::tile_columns(c);
  const double epilogue =
      stored * out_bytes / kStoreBytesPerClock + (is_fused(c) ? stored / 8 : 0) + 400;
  const double exposed = c.ping_pong == 1 || two_blocks ? 0.25 : 1;
  const double each_sm = tiles / gpu.num_sms;
  const double rounds = each_sm > 1 ? each_sm + 0.5 / each_sm : 1;
  const double math_us = rounds * (steps * step + epilogue * exposed) / kClockMhz;

  const double weights = static_cast<double>(c.size_n) * c.size_k * element;
  const double rows = static_cast<double>(problem.num_tokens * problem.shape.top_k);
  const double us_per_byte = 1 / gbps / 1e3;
  // Rows that are walked together read an expert's weights once, where they do not stay in L2.
  const double together = point.at("ORDER") == 1 ? rows : point.at("GROUP_SIZE_M") * tile_rows;
  const bool again =
      mean_rows(problem) > tile_rows && weights > static_cast<double>(gpu.l2_bytes) / 2;
  const double times = again ? std::clamp(mean_rows(problem) / together, 1.0, 8.0) : 1.0;
  const bool sums = c.output == Output::weighted_sum;
  const double stored_us =
      rows * moetune::out_columns(c) * out_bytes * us_per_byte * (sums ? 1.3 : 1.0);
  const double read_us = experts * weights * us_per_byte * (1 + 0.3 * (times - 1));
  double other_us = 5;
  if (stage == Stage::gemm1 && c.gather == 0) {
    const double slots = rows / static_cast<double>(problem.shape.top_k);
    other_us += 2 + (slots * 2 + 1.5 * rows * element) * c.size_k * us_per_byte;
  }
  if (stage == Stage::gemm2) {
    const LayerShape& s = problem.shape;
    other_us += static_cast<double>(problem.num_tokens * s.hidden_size * (sums ? 2 : s.top_k + 1)) *
                2 * us_per_byte;
  } else if (!is_fused(c)) {
    other_us += 1.6 * stored_us;
  } else if (c.fp8 && c.output == Output::swiglu) {
    other_us += 0.8 * stored_us;
  }
  return std::max(math_us, read_us + stored_us) + other_us;
}

}  // namespace

HopperConfig hopper_config(const Problem& problem, Stage stage, const Point& point) {
  const bool first = stage == Stage::gemm1;
  const bool fp8 = point.at("FP8") == 1;
  const bool gathers = first && point.value_or("GATHER", 1) == 1;
  const LayerShape& shape = problem.shape;
  const Scales scales = !fp8                                 ? Scales::none
                        : problem.dtype == Dtype::fp8_tensor ? Scales::tensor
                                                             : Scales::block;
  HopperConfig c{.block_m = point.at("BLOCK_SIZE_M"),
                 .block_n = point.at("BLOCK_SIZE_N"),
                 .num_warps = point.at("NUM_WARPS"),
                 .ping_pong = point.at("PING_PONG"),
                 .cluster = point.at("CLUSTER_SIZE"),
                 .num_stages = point.at("NUM_STAGES"),
                 .blocks_per_sm = point.at("BLOCKS_PER_SM"),
                 .fp8 = fp8 ? 1 : 0,
                 .scales = scales,
                 .output = Output::bf16,
                 .size_n = narrow(first ? 2 * shape.intermediate_size : shape.hidden_size),
                 .size_k = narrow(first ? shape.hidden_size : shape.intermediate_size),
                 .top_k = narrow(shape.top_k),
                 .gather = gathers ? 1 : 0};
  if (point.value_or("FUSE_COMBINE", 0) == 1) c.output = Output::weighted_sum;
  if (first && point.value_or("FUSE_SWIGLU", 0) == 1) {
    // The epilogue quantises too where a warpgroup holds whole scale groups.
    const bool quantises =
        scales == Scales::block && c.block_n == 2 * kScaleGroup && warpgroups_n(c) == 1;
    c.output = quantises ? Output::swiglu_fp8 : Output::swiglu;
  }
  return c;
}

std::unique_ptr<Variant> make_hopper() {
  return std::make_unique<Hopper>();
}

}  // namespace moetune
