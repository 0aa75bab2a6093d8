// The portable variant's host half: what its rules let pass and what its cubins need.
#include <doctest/doctest.h>

#include "core/error.hpp"
#include "jit/compiler.hpp"
#include "kernels/portable/host.hpp"
#include "search/legal_points.hpp"

using namespace moetune;

namespace {

Problem problem_for(Dtype dtype, std::int64_t num_tokens) {
  Problem problem;
  problem.shape = {"test", 64, 8, 2048, 1024};
  problem.dtype = dtype;
  problem.num_tokens = num_tokens;
  return problem;
}

}  // namespace

TEST_CASE("portable: legal points fit the GPU, whichever GPU and dtype") {
  for (const char* name : {"a100", "rtx4090", "h200"}) {
    const Gpu gpu = known_gpu(name);
    for (const Dtype dtype : {Dtype::bf16, Dtype::fp8_block, Dtype::fp8_tensor}) {
      const Variant& variant = find_variant("portable");
      CHECK(variant.supports(gpu, dtype) == (!is_fp8(dtype) || gpu.cc() >= 89));
      if (!variant.supports(gpu, dtype)) continue;
      for (const std::int64_t num_tokens : {1, 64, 4096}) {
        const Problem problem = problem_for(dtype, num_tokens);
        const auto legal =
            enumerate(variant.space(gpu, problem, Stage::gemm1, default_fp8_mode(dtype)));
        CHECK(legal.points.size() >= 50);
        for (const Point& point : legal.points) {
          const GemmLaunch launch = variant.launch(problem, Stage::gemm1, point);
          REQUIRE(launch.smem_bytes <= gpu.smem_per_block);
          REQUIRE(launch.num_threads <= 1024);
          REQUIRE(warps_m(gemm_config(problem, Stage::gemm1, point)) > 0);
          REQUIRE(variant.predict_us(gpu, problem, Stage::gemm1, point) > 0);
        }
        for (const char* rule : {"block_shape", "accumulators", "warp_tile", "split_k_fused"}) {
          CAPTURE(rule);
          CHECK(legal.rejected.count(rule) == 1);
        }
      }
    }
  }
}

TEST_CASE("portable: the reference point is 64x64x64, 4 warps, 2 stages, FP8 off") {
  const Gpu gpu = known_gpu("h200");
  for (const Dtype dtype : {Dtype::bf16, Dtype::fp8_block}) {
    const Plan plan = reference_plan(gpu, problem_for(dtype, 1));
    REQUIRE(plan.steps.size() == 2);
    for (const Step& step : plan.steps) {
      for (const char* name : {"BLOCK_SIZE_M", "BLOCK_SIZE_N", "BLOCK_SIZE_K"}) {
        CHECK(step.point.at(name) == 64);
      }
      CHECK(step.point.at("NUM_WARPS") == 4);
      CHECK(step.point.at("NUM_STAGES") == 2);
      CHECK(step.point.at("FP8") == 0);
    }
  }
}

TEST_CASE("portable: points that differ in the walk or the token count share one cubin") {
  const Gpu gpu = known_gpu("h200");
  const Variant& variant = find_variant("portable");
  const Problem problem = problem_for(Dtype::bf16, 4096);
  Point point = reference_plan(gpu, problem).steps[0].point;
  const auto expression = variant.source(gpu, problem, Stage::gemm1, point).expressions;
  point.set("ORDER", 1);
  CHECK(variant.source(gpu, problem, Stage::gemm1, point).expressions == expression);
  CHECK(variant.source(gpu, problem_for(Dtype::bf16, 1), Stage::gemm1, point).expressions ==
        expression);
  point.set("NUM_STAGES", 3);
  CHECK(variant.source(gpu, problem, Stage::gemm1, point).expressions != expression);
}

TEST_CASE("portable: the reference point compiles without spills and with the threads it says") {
  const Gpu gpu = known_gpu("h200");
  const Variant& variant = find_variant("portable");
  for (const Dtype dtype : {Dtype::bf16, Dtype::fp8_block, Dtype::fp8_tensor}) {
    const Problem problem = problem_for(dtype, 64);
    Point point = reference_plan(gpu, problem).steps[1].point;
    point.set("FP8", is_fp8(dtype) ? 1 : 0);
    const Cubin cubin = compile(variant.source(gpu, problem, Stage::gemm2, point), "sm_90a");
    CAPTURE(cubin.error);
    REQUIRE(cubin.ok());
    const Resources& used = cubin.kernels.at(0).resources;
    const int num_threads = variant.launch(problem, Stage::gemm2, point).num_threads;
    CHECK(used.stack_bytes == 0);
    CHECK(used.max_threads == num_threads);
    CHECK(used.registers <= 255);
    CHECK(resource_defect(cubin.kernels[0], cubin.log, num_threads).empty());
  }
}
