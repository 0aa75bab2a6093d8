// The swapped variant's host half: what its rules let pass, and what its cubins need.
#include <doctest/doctest.h>

#include <algorithm>

#include "jit/compiler.hpp"
#include "kernels/swap_ab/host.hpp"
#include "search/legal_points.hpp"

using namespace moetune;

namespace {

constexpr Dtype kDtypes[] = {Dtype::bf16, Dtype::fp8_block, Dtype::fp8_tensor};

Problem problem_for(Dtype dtype, std::int64_t num_tokens) {
  Problem problem;
  problem.shape = {"test", 64, 8, 2048, 1024};
  problem.dtype = dtype;
  problem.num_tokens = num_tokens;
  return problem;
}

std::vector<Point> legal_points(const Gpu& gpu, const Problem& problem, Stage stage) {
  return enumerate(
             find_variant("swap_ab").space(gpu, problem, stage, default_fp8_mode(problem.dtype)))
      .points;
}

}  // namespace

TEST_CASE("swap_ab: runs on sm_90 alone") {
  const Variant& variant = find_variant("swap_ab");
  for (const char* name : {"a100", "rtx4090", "b200", "rtx5090"}) {
    CHECK_FALSE(variant.supports(known_gpu(name), Dtype::bf16));
  }
  for (const Dtype dtype : kDtypes) CHECK(variant.supports(known_gpu("h200"), dtype));
}

TEST_CASE("swap_ab: legal points fit the GPU, and tiles are about as high as experts have rows") {
  const Gpu gpu = known_gpu("h200");
  const Variant& variant = find_variant("swap_ab");
  for (const Dtype dtype : kDtypes) {
    for (const std::int64_t num_tokens : {1, 64, 512}) {
      for (const Stage stage : {Stage::gemm1, Stage::gemm2}) {
        const Problem problem = problem_for(dtype, num_tokens);
        const auto points = legal_points(gpu, problem, stage);
        CHECK(points.size() >= 5);
        for (const Point& point : points) {
          CAPTURE(point.key());
          const GemmLaunch launch = variant.launch(problem, stage, point);
          const int blocks = point.at("BLOCKS_PER_SM");
          REQUIRE((launch.smem_bytes + 1024) * blocks <= gpu.smem_per_sm);
          REQUIRE(launch.smem_bytes <= gpu.smem_per_block);
          REQUIRE(launch.num_threads * blocks <= 2048);
          REQUIRE(launch.w_box_rows <= 256);
          REQUIRE(launch.block_m <= std::max<std::int64_t>(8, num_tokens));
          REQUIRE(variant.predict_us(gpu, problem, stage, point) > 0);
        }
      }
    }
  }
  CHECK(legal_points(gpu, problem_for(Dtype::bf16, 8192), Stage::gemm1).empty());
}

TEST_CASE("swap_ab: fp8_block points quantise in the epilogue where a tile has whole groups") {
  const Problem problem = problem_for(Dtype::fp8_block, 64);
  const Variant& variant = find_variant("swap_ab");
  Point point = variant.space(known_gpu("h200"), problem, Stage::gemm1, Fp8Mode::on).reference();
  point.set("BLOCK_SIZE_N", 256);
  CHECK(variant.launch(problem, Stage::gemm1, point).output == Output::swiglu_fp8);
  point.set("BLOCK_SIZE_N", 128);
  CHECK(variant.launch(problem, Stage::gemm1, point).output == Output::swiglu);
}

TEST_CASE("swap_ab: joined plans are legal pairs, whose GEMM1 ends with what GEMM2 reads") {
  const Gpu gpu = known_gpu("h200");
  const Variant& variant = find_variant("swap_ab");
  for (const Dtype dtype : {Dtype::bf16, Dtype::fp8_block}) {
    for (const std::int64_t num_tokens : {1, 64, 512}) {
      const Problem problem = problem_for(dtype, num_tokens);
      const Fp8Mode fp8 = default_fp8_mode(dtype);
      const auto plans = variant.joined_plans(gpu, problem, fp8);
      CHECK(plans.size() >= 2);
      CHECK(plans.size() <= 60);
      SearchSpace spaces[2] = {variant.space(gpu, problem, Stage::gemm1, fp8),
                               variant.space(gpu, problem, Stage::gemm2, fp8)};
      // In a search by itself no GEMM2 joins.
      CHECK(spaces[1].reject(plans.at(0).steps.at(1).point)->rule == "joined");
      for (SearchSpace& space : spaces) {
        std::erase_if(space.constraints, [](const Constraint& c) { return c.spares_search; });
      }
      for (const Plan& plan : plans) {
        CAPTURE(plan.key());
        CHECK(pair_defect(plan) == "");
        CHECK_FALSE(spaces[0].reject(plan.steps.at(0).point, true).has_value());
        CHECK_FALSE(spaces[1].reject(plan.steps.at(1).point, true).has_value());
        const GemmLaunch first = variant.launch(problem, Stage::gemm1, plan.steps.at(0).point);
        const GemmLaunch second = variant.launch(problem, Stage::gemm2, plan.steps.at(1).point);
        CHECK(first.output == (dtype == Dtype::bf16 ? Output::swiglu : Output::swiglu_fp8));
        CHECK(variant.fuses_gemms(plan.steps.at(1).point));
        CHECK(second.smem_bytes >= first.smem_bytes);
      }
    }
  }
  CHECK(variant.joined_plans(gpu, problem_for(Dtype::bf16, 8192), Fp8Mode::off).empty());
  // One scale a row needs the whole row.
  CHECK(variant.joined_plans(gpu, problem_for(Dtype::fp8_tensor, 64), Fp8Mode::on).empty());
}

TEST_CASE("swap_ab: a joined GEMM2 beside another GEMM1 is refused, naming what differs") {
  const Problem problem = problem_for(Dtype::bf16, 64);
  Plan plan = find_variant("swap_ab").joined_plans(known_gpu("h200"), problem, Fp8Mode::off).at(0);
  plan.steps[0].point.set("NUM_STAGES", 2);
  CHECK(pair_defect(plan).find("NUM_STAGES") != std::string::npos);
  plan.steps[0].variant = "portable";
  CHECK(pair_defect(plan).find("needs a gemm1 of swap_ab, not of portable") != std::string::npos);
  plan.steps[1].point.set("JOIN_GEMM1", 0);
  CHECK(pair_defect(plan) == "");
  plan.steps[1].point.set("FP8", 1);
  CHECK(pair_defect(plan).starts_with("fp8_mixed: "));
}

TEST_CASE("swap_ab: a sample of points compiles for sm_90a with the resources the host expects") {
  const Gpu gpu = known_gpu("h200");
  const Variant& variant = find_variant("swap_ab");
  for (const Dtype dtype : kDtypes) {
    for (const Stage stage : {Stage::gemm1, Stage::gemm2}) {
      for (const std::int64_t num_tokens : {8, 512}) {
        const Problem problem = problem_for(dtype, num_tokens);
        std::vector<Point> points = legal_points(gpu, problem, stage);
        shuffle(points, 7);
        points.resize(std::min<std::size_t>(points.size(), 2));
        for (const Point& point : points) {
          CAPTURE(point.key());
          const Cubin cubin = compile(variant.source(gpu, problem, stage, point), "sm_90a");
          CAPTURE(cubin.error);
          REQUIRE(cubin.ok());
          const GemmLaunch launch = variant.launch(problem, stage, point);
          const CompiledKernel& kernel = cubin.kernels.at(0);
          CHECK(kernel.resources.max_threads == launch.num_threads);
          CHECK(kernel.resources.static_smem_bytes == 0);
          CHECK(resource_defect(kernel, cubin.log, launch.num_threads) == "");
        }
      }
    }
  }
}
