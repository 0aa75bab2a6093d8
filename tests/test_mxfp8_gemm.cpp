// The MXFP8 GEMM's host half: which points its rules leave, what they say, and what cubins need.
#include <doctest/doctest.h>

#include <algorithm>

#include "bench/levels.hpp"
#include "bench/mxfp8_layer.hpp"
#include "core/error.hpp"
#include "search/legal_points.hpp"

namespace moetune {
namespace {

// One expert that every token picks: GEMM2 is the matmul [m, k] [n, k].
Problem matmul(std::int64_t m, std::int64_t n, std::int64_t k) {
  Problem problem;
  problem.shape = {"matmul", 1, 1, n, k};
  problem.num_tokens = m;
  return problem;
}

Problem layer(std::int64_t num_tokens) {
  Problem problem;
  problem.shape = {"layer", 64, 8, 2880, 1024};  // 90 scales a row: not whole words
  problem.num_tokens = num_tokens;
  return problem;
}

std::vector<Point> legal_points(const Gpu& gpu, const Problem& problem, Stage stage) {
  return enumerate(mxfp8_space(gpu, problem, stage)).points;
}

Point point(int m, int n, int k, int num_warps, int num_stages) {
  return Point({{"BLOCK_SIZE_M", m},
                {"BLOCK_SIZE_N", n},
                {"BLOCK_SIZE_K", k},
                {"NUM_WARPS", num_warps},
                {"NUM_STAGES", num_stages}});
}

std::string broken_rule(const Gpu& gpu, const Problem& problem, const Point& point) {
  const auto rejection = mxfp8_space(gpu, problem, Stage::gemm2).reject(point);
  return rejection ? rejection->rule + ": " + rejection->reason : "";
}

}  // namespace

TEST_CASE("mxfp8 gemm: every GPU with e4m3 has points for every shape, few enough to try all") {
  for (const char* name : {"rtx4090", "l40s", "h200", "b200", "rtx5090"}) {
    const Gpu gpu = known_gpu(name);
    CAPTURE(name);
    std::vector<Problem> problems = {matmul(128, 256, 512), matmul(256, 512, 1024),
                                     matmul(1, 32, 32), matmul(8192, 8192, 8192)};
    for (const std::int64_t num_tokens : {1, 16, 100, 300, 700, 8192})
      problems.push_back(layer(num_tokens));
    for (const Problem& problem : problems) {
      CAPTURE(problem.num_tokens);
      for (const Stage stage : {Stage::gemm1, Stage::gemm2}) {
        const std::vector<Point> points = legal_points(gpu, problem, stage);
        CHECK(points.size() >= 4);
        CHECK(points.size() <= (gpu.cc_major == 10 ? 30U : 24U));
        CHECK(why_no_mxfp8_point(gpu, problem, stage) == "");
        for (const Point& point : points) {
          CAPTURE(point.key());
          const Mxfp8Config c = mxfp8_config(problem, stage, point);
          CHECK(mx_smem_bytes(c) <= gpu.smem_per_block);
          CHECK(warps_m(c) > 0);
          CHECK((c.tensor_memory != 0 || accumulators(c) <= 128));
        }
      }
    }
  }
}

TEST_CASE("mxfp8 gemm: consumer GPUs' 101,376 bytes leave points for the small matmuls") {
  const Gpu gpu = known_gpu("rtx5090");
  CHECK(gpu.smem_per_block == 101376);
  for (const Problem& problem : {matmul(128, 256, 512), matmul(256, 512, 1024)}) {
    const LegalPoints legal = enumerate(mxfp8_space(gpu, problem, Stage::gemm2));
    CHECK(legal.points.size() >= 6);
    const auto too_large = [&](const Gpu& on) {
      return enumerate(mxfp8_space(on, problem, Stage::gemm2)).rejected.at("shared_memory").count;
    };
    CHECK(too_large(gpu) > too_large(known_gpu("h200")));
  }
}

TEST_CASE("mxfp8 gemm: broken rules are named, with numbers") {
  const Gpu gpu = known_gpu("rtx5090");
  CHECK(broken_rule(gpu, matmul(128, 256, 512), point(128, 128, 128, 8, 2)) == "");
  CHECK(broken_rule(gpu, matmul(128, 256, 512), point(128, 128, 128, 8, 3)) ==
        "shared_memory: needs 101888 bytes of shared memory, the GPU allows 101376 a block");
  CHECK(broken_rule(gpu, matmul(128, 256, 520), point(128, 128, 128, 8, 2)) ==
        "scale_blocks: rows of 520 values are no multiple of 32, for which MXFP8 has a scale");
  CHECK(broken_rule(gpu, matmul(128, 258, 512), point(128, 128, 128, 8, 2)) ==
        "columns: 258 output columns are no multiple of 8");
  CHECK(broken_rule(gpu, matmul(128, 256, 512), point(128, 256, 128, 4, 2)) ==
        "accumulators: 256 accumulators a thread, at most 128 fit the register file");
  CHECK(broken_rule(known_gpu("h200"), matmul(128, 256, 512), point(128, 128, 128, 4, 2)) ==
        "accumulators: 128 accumulators a thread, at most 64 fit the register file");
  CHECK(broken_rule(gpu, matmul(8, 256, 512), point(32, 128, 128, 8, 3))
            .starts_with("accumulators: 16 accumulators a thread: too many warps"));
  CHECK(broken_rule(gpu, matmul(8, 256, 512), point(128, 64, 128, 4, 3)).starts_with("row_tiles"));
  CHECK(
      broken_rule(gpu, matmul(8, 64, 512), point(16, 128, 128, 4, 3)).starts_with("column_tiles"));
  CHECK(broken_rule(gpu, matmul(8, 256, 512), point(16, 64, 128, 4, 2)).starts_with("pipeline"));
}

TEST_CASE("mxfp8 gemm: a shape that no point can serve gets the rule it breaks and the remedy") {
  const std::string scales =
      why_no_mxfp8_point(known_gpu("h200"), matmul(128, 256, 520), Stage::gemm2);
  CHECK(scales.find("gemm2") != std::string::npos);
  CHECK(scales.find("scale_blocks (144 points): rows of 520 values") != std::string::npos);
  CHECK(scales.find("multiples of 32") != std::string::npos);
  Gpu small = known_gpu("rtx5090");
  small.smem_per_block = 8192;
  CHECK(why_no_mxfp8_point(small, matmul(128, 256, 512), Stage::gemm2).find("shared_memory (") !=
        std::string::npos);
  CHECK(why_no_mxfp8_point(known_gpu("a100"), matmul(128, 256, 512), Stage::gemm1)
            .find("sm_89 or later") != std::string::npos);
}

TEST_CASE("mxfp8 gemm: shared memory by hand") {
  // Two stages of 128 + 64 rows of 256 values and 8 scales, and 128 rows' numbers.
  const Mxfp8Config c =
      mxfp8_config(matmul(128, 256, 512), Stage::gemm2, point(128, 64, 256, 4, 2));
  CHECK(mx_smem_bytes(c) == 2 * (128 + 64) * (256 + 8) + 4 * 128);
  CHECK(mx_scale_pitch(512) == 16);
  CHECK(mx_scale_pitch(2880) == 92);
  CHECK(mx_scale_pitch(32) == 4);
}

TEST_CASE("mxfp8 gemm: which path an architecture takes, and where it has a choice") {
  const Problem problem = matmul(128, 256, 512);
  Point chosen = point(128, 64, 128, 4, 3);
  const auto path = [&](const char* gpu) {
    return mxfp8_path(known_gpu(gpu), mxfp8_config(problem, Stage::gemm2, chosen));
  };
  CHECK(path("l40s") == Mxfp8Path::scaled);
  CHECK(path("h200") == Mxfp8Path::widened);
  CHECK(path("b200") == Mxfp8Path::widened);
  CHECK(path("rtx5090") == Mxfp8Path::native);
  chosen.set("TENSOR_MEMORY", 1);
  CHECK(path("b200") == Mxfp8Path::tensor_memory);
  CHECK(broken_rule(known_gpu("b200"), problem, chosen) == "");
  CHECK(broken_rule(known_gpu("h200"), problem, chosen) ==
        "parameters: TENSOR_MEMORY is not a parameter");
  chosen.set("NUM_WARPS", 8);
  CHECK(broken_rule(known_gpu("b200"), problem, chosen) ==
        "tensor_memory: tcgen05.mma of 128 rows, 128 of K and 8 warps: it takes 128, 128 and 4");
}

TEST_CASE("mxfp8 gemm: tensor memory's scales lie in blocks of 128 rows, each in one place") {
  Point chosen = point(128, 256, 128, 4, 4);
  chosen.set("TENSOR_MEMORY", 1);
  const Mxfp8Config c = mxfp8_config(matmul(128, 256, 512), Stage::gemm2, chosen);
  CHECK(mx_scale_words(c) == 384);
  CHECK(mx_scale_place(c, 0) == 0);
  CHECK(mx_scale_place(c, 1) == 4);      // the next row: the next 16 bytes
  CHECK(mx_scale_place(c, 32) == 1);     // row 32: the next column
  CHECK(mx_scale_place(c, 128) == 128);  // the weights' first row
  std::vector<bool> taken(384);
  for (int item = 0; item < 384; ++item)
    taken.at(static_cast<std::size_t>(mx_scale_place(c, item))) = true;
  CHECK(std::count(taken.begin(), taken.end(), true) == 384);
  CHECK(mx_stage_bytes(c) == 50 * 1024);  // 48 KiB of values, 1.5 KiB of scales, aligned
  CHECK(mx_tensor_columns(c) == 512);     // 256 sums and 4 x 12 of scales
  CHECK(mx_smem_bytes(c) == 4 * 50 * 1024 + 128 * 4 + 1024 + 4 * 8 + 16);
}

// A spill of a few bytes, to fit one more block on an SM, rejects a point; most must pass.
TEST_CASE("mxfp8 gemm: points compile for every architecture with e4m3; most do not spill") {
  int good = 0;
  int all = 0;
  for (const char* name : {"l40s", "h200", "b200", "rtx5090"}) {
    const Gpu gpu = known_gpu(name);
    for (const Stage stage : {Stage::gemm1, Stage::gemm2}) {
      const Problem problem = layer(stage == Stage::gemm1 ? 300 : 1);
      std::vector<Point> points = legal_points(gpu, problem, stage);
      shuffle(points, 3);
      // Two of those that hold their sums in registers, one of those that do not.
      const auto in_registers = [](const Point& p) { return p.value_or("TENSOR_MEMORY", 0) == 0; };
      const auto others = std::stable_partition(points.begin(), points.end(), in_registers);
      const bool has_others = others != points.end();
      CHECK(has_others == (gpu.cc_major == 10));
      if (has_others) points[2] = *others;
      points.resize(has_others ? 3 : 2);
      for (const Point& point : points) {
        const Mxfp8Config c = mxfp8_config(problem, stage, point);
        CAPTURE(name);
        CAPTURE(point.key());
        const Cubin cubin = compile(mxfp8_gemm_kernel(c), arch_name(gpu), embedded_journey());
        CAPTURE(cubin.error);
        REQUIRE(cubin.ok());
        const CompiledKernel& kernel = cubin.kernels.at(0);
        const std::string defect = resource_defect(kernel, cubin.log, num_threads(c));
        CAPTURE(defect);
        CHECK((defect.empty() || defect.starts_with("spill")));
        good += defect.empty() ? 1 : 0;
        ++all;
        CHECK(kernel.resources.max_threads == num_threads(c));
        CHECK(kernel.resources.static_smem_bytes == 0);  // all of it is what the host counts
        if (in_registers(point)) CHECK(kernel.resources.registers > accumulators(c));
      }
    }
  }
  CHECK(good * 10 >= all * 8);
}

}  // namespace moetune
