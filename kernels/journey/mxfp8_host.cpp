#include "kernels/journey/mxfp8_host.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "kernels/expected.hpp"

namespace moetune {
std::string_view to_string(Mxfp8Path path) {
  switch (path) {
    case Mxfp8Path::native:
      return "native block-scaled mma";
    case Mxfp8Path::tensor_memory:
      return "native block-scaled tcgen05.mma";
    case Mxfp8Path::scaled:
      return "e4m3 mma, scales applied in fp32";
    case Mxfp8Path::widened:
      break;
  }
  return "f16 mma of widened e4m3, scales applied in fp32";
}

Mxfp8Path mxfp8_path(const Gpu& gpu, const Mxfp8Config& config) {
  if (config.tensor_memory != 0) return Mxfp8Path::tensor_memory;
  if (gpu.cc_major == 12) return Mxfp8Path::native;
  return gpu.cc() < 90 ? Mxfp8Path::scaled : Mxfp8Path::widened;
}

SearchSpace mxfp8_space(const Gpu& gpu, const Problem& problem, Stage stage) {
  SearchSpace space;
  space.parameters = {
      {"BLOCK_SIZE_M", {16, 32, 64, 128}, 64, "rows (token slots) of a tile"},
      {"BLOCK_SIZE_N", {64, 128, 256}, 64, "weight rows (output columns) of a tile"},
      {"BLOCK_SIZE_K", {128, 256}, 128, "K elements of a pipeline stage: whole words of scales"},
      {"NUM_WARPS", {4, 8}, 4, "warps of a thread block"},
      {"NUM_STAGES", {2, 3, 4}, 3, "depth of the cp.async pipeline"}};
  const bool has_tensor_memory = gpu.cc_major == 10;
  if (has_tensor_memory) {
    space.parameters.push_back({"TENSOR_MEMORY", {0, 1}, 0, "1: tcgen05.mma, 0: mma"});
  }
  const auto config = [problem, stage](const Point& p) { return mxfp8_config(problem, stage, p); };
  const double rows = mean_rows(problem);

  space.rule("e4m3", [gpu](const Point&) -> Violation {
    if (gpu.cc() >= 89) return {};
    return fmt::format("{} multiplies no e4m3; MXFP8 takes sm_89 or later", gpu.name);
  });
  space.rule("scale_blocks", [config](const Point& p) -> Violation {
    const int size_k = config(p).size_k;
    if (size_k % kMxBlockK == 0) return {};
    return fmt::format("rows of {} values are no multiple of {}, for which MXFP8 has a scale",
                       size_k, kMxBlockK);
  });
  space.rule("columns", [config](const Point& p) -> Violation {
    const Mxfp8Config c = config(p);
    const int columns = c.output == Output::swiglu ? c.size_n / 2 : c.size_n;
    if (columns % 8 == 0) return {};
    return fmt::format("{} output columns are no multiple of 8", columns);
  });
  space.rule("tensor_memory", [config](const Point& p) -> Violation {
    const Mxfp8Config c = config(p);
    if (c.tensor_memory == 0) return {};
    if (c.block_m != 128 || c.block_k != kMxWordK || c.num_warps != 4) {
      return fmt::format("tcgen05.mma of {} rows, {} of K and {} warps: it takes 128, {} and 4",
                         c.block_m, c.block_k, c.num_warps, kMxWordK);
    }
    if (mx_tensor_columns(c) <= 512) return {};
    return fmt::format("needs {} columns of tensor memory, an SM has 512", mx_tensor_columns(c));
  });
  space.rule("warp_tile", [config](const Point& p) -> Violation {
    const Mxfp8Config c = config(p);
    if (warps_m(c) > 0) return {};
    return fmt::format("{} warps cannot share a {}x{} tile in multiples of 16x16", c.num_warps,
                       c.block_m, c.block_n);
  });
  space.rule("accumulators", [gpu, config](const Point& p) -> Violation {
    const Mxfp8Config c = config(p);
    if (c.tensor_memory != 0) return {};  // where the sums are
    // Where scales are applied in fp32, they and the widened operands take as many registers again.
    const int most = mxfp8_path(gpu, c) == Mxfp8Path::native ? 128 : 64;
    if (accumulators(c) > most) {
      return fmt::format("{} accumulators a thread, at most {} fit the register file",
                         accumulators(c), most);
    }
    const int least = c.num_warps > 4 ? 32 : 8;
    if (accumulators(c) < least) {
      return fmt::format("{} accumulators a thread: too many warps for the tile", accumulators(c));
    }
    return {};
  });
  space.rule("shared_memory", [gpu, config](const Point& p) -> Violation {
    const int need = mx_smem_bytes(config(p));
    if (need <= gpu.smem_per_block) return {};
    return fmt::format("needs {} bytes of shared memory, the GPU allows {} a block", need,
                       gpu.smem_per_block);
  });
  space.spare("row_tiles", [rows, config](const Point& p) -> Violation {
    const int m = p.at("BLOCK_SIZE_M");
    if (config(p).tensor_memory != 0) return {};  // rows that are not there cost no memory traffic
    if (m > 16 && m >= 2 * rows) {
      return fmt::format("{} rows a tile for {:.1f} rows an expert: half the tile would do", m,
                         rows);
    }
    if (m < 128 && rows >= 2 * m) {
      return fmt::format("{:.0f} rows an expert would read its weights for tiles of {} rows", rows,
                         m);
    }
    return {};
  });
  space.spare("column_tiles", [config](const Point& p) -> Violation {
    const Mxfp8Config c = config(p);
    if (c.block_n == 64 || c.block_n < 2 * c.size_n) return {};
    return fmt::format("{} weight rows a tile for {}: half the tile would do", c.block_n, c.size_n);
  });
  space.spare("pipeline", [config](const Point& p) -> Violation {
    if (config(p).tensor_memory != 0) {
      if (p.at("NUM_STAGES") > 2) return {};
      return "2 stages: the copies would wait for each product";
    }
    const int m = p.at("BLOCK_SIZE_M");
    const int k = p.at("BLOCK_SIZE_K");
    const int stages = p.at("NUM_STAGES");
    if (k > kMxWordK && m > 16) return "wide K steps only pay for few rows";
    if (k > kMxWordK && stages > 3) {
      return fmt::format("{} stages of {} of K: fewer already keep the memory busy", stages, k);
    }
    if (k == kMxWordK && m <= 32 && stages < 3) {
      return fmt::format("{} stages of {} of K and {} rows: too little in flight", stages, k, m);
    }
    return {};
  });
  return space;
}

Mxfp8Config mxfp8_config(const Problem& problem, Stage stage, const Point& point) {
  const bool first = stage == Stage::gemm1;
  const LayerShape& s = problem.shape;
  return Mxfp8Config{.block_m = point.at("BLOCK_SIZE_M"),
                     .block_n = point.at("BLOCK_SIZE_N"),
                     .block_k = point.at("BLOCK_SIZE_K"),
                     .num_warps = point.at("NUM_WARPS"),
                     .num_stages = point.at("NUM_STAGES"),
                     .tensor_memory = point.value_or("TENSOR_MEMORY", 0),
                     .output = first ? Output::swiglu : Output::bf16,
                     .size_n = narrow(first ? 2 * s.intermediate_size : s.hidden_size),
                     .size_k = narrow(first ? s.hidden_size : s.intermediate_size),
                     .top_k = first ? narrow(s.top_k) : 0};
}

KernelSource mxfp8_gemm_kernel(const Mxfp8Config& c) {
  const char* const name = c.tensor_memory != 0 ? "mxfp8_tcgen05" : "mxfp8_gemm";
  return {fmt::format("journey/{}.cu", name),
          {fmt::format("moetune_journey::{}<moetune::Mxfp8Config{{.block_m = {}, .block_n = {}, "
                       ".block_k = {}, .num_warps = {}, .num_stages = {}, .tensor_memory = {}, "
                       ".output = moetune::Output({}), .size_n = {}, .size_k = {}, .top_k = {}}}>",
                       name, c.block_m, c.block_n, c.block_k, c.num_warps, c.num_stages,
                       c.tensor_memory, static_cast<int>(c.output), c.size_n, c.size_k, c.top_k)},
          {}};
}

}  // namespace moetune
