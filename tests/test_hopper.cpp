// The Hopper variant's host half: what its rules let pass, and what its cubins need.
#include <doctest/doctest.h>

#include <algorithm>

#include "jit/compiler.hpp"
#include "kernels/hopper/host.hpp"
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
             find_variant("hopper").space(gpu, problem, stage, default_fp8_mode(problem.dtype)))
      .points;
}

}  // namespace

TEST_CASE("hopper: runs on sm_90 alone") {
  const Variant& variant = find_variant("hopper");
  for (const char* name : {"a100", "rtx4090", "b200", "rtx5090"}) {
    CHECK_FALSE(variant.supports(known_gpu(name), Dtype::bf16));
  }
  for (const Dtype dtype : kDtypes) CHECK(variant.supports(known_gpu("h200"), dtype));
}

TEST_CASE("hopper: legal points fit the GPU's shared memory, threads and registers") {
  const Gpu gpu = known_gpu("h200");
  const Variant& variant = find_variant("hopper");
  for (const Dtype dtype : kDtypes) {
    for (const std::int64_t num_tokens : {64, 1024, 8192}) {
      for (const Stage stage : {Stage::gemm1, Stage::gemm2}) {
        const Problem problem = problem_for(dtype, num_tokens);
        const auto points = legal_points(gpu, problem, stage);
        CHECK(points.size() >= 20);
        for (const Point& point : points) {
          CAPTURE(point.key());
          const GemmLaunch launch = variant.launch(problem, stage, point);
          const HopperConfig c = hopper_config(problem, stage, point);
          REQUIRE(launch.smem_bytes * c.blocks_per_sm <= gpu.smem_per_sm);
          REQUIRE(launch.smem_bytes <= gpu.smem_per_block);
          REQUIRE(launch.num_threads <= 1024);
          REQUIRE(launch.w_box_rows <= 256);
          const int held = math_registers(c) > launch_registers(c)
                               ? kLoadRegisters * kWarpgroup + math_registers(c) * c.num_warps * 32
                               : launch_registers(c) * launch.num_threads;
          REQUIRE(held * c.blocks_per_sm <= 65536);
          REQUIRE(variant.predict_us(gpu, problem, stage, point) > 0);
        }
      }
    }
  }
}

TEST_CASE("hopper: a cluster's tile is two blocks high, and its rows lie packed") {
  const Problem problem = problem_for(Dtype::bf16, 8192);
  const Variant& variant = find_variant("hopper");
  Point point = variant.space(known_gpu("h200"), problem, Stage::gemm2, Fp8Mode::off).reference();
  const GemmLaunch alone = variant.launch(problem, Stage::gemm2, point);
  point.set("CLUSTER_SIZE", 2);
  const GemmLaunch both = variant.launch(problem, Stage::gemm2, point);
  CHECK(both.block_m == 2 * alone.block_m);
  CHECK(both.cluster == 2);
  const SearchSpace space = variant.space(known_gpu("h200"), problem, Stage::gemm1, Fp8Mode::off);
  point = space.reference();
  point.set("CLUSTER_SIZE", 2);
  CHECK(space.reject(point).has_value());
  point.set("GATHER", 0);
  CHECK_FALSE(space.reject(point).has_value());
}

TEST_CASE("hopper: fp8_block points quantise in the epilogue where a warpgroup has whole groups") {
  const Problem problem = problem_for(Dtype::fp8_block, 8192);
  const Variant& variant = find_variant("hopper");
  Point point = variant.space(known_gpu("h200"), problem, Stage::gemm1, Fp8Mode::on).reference();
  point.set("BLOCK_SIZE_N", 256);
  CHECK(variant.launch(problem, Stage::gemm1, point).output == Output::swiglu_fp8);
  point.set("BLOCK_SIZE_N", 128);
  CHECK(variant.launch(problem, Stage::gemm1, point).output == Output::swiglu);
}

// Spills and ptxas's warnings about serialised WGMMA or ignored setmaxnreg reject a point; most
// must pass, and what passes has the threads and no more shared memory than the host says.
TEST_CASE("hopper: a sample of points compiles for sm_90a without spills or performance warnings") {
  const Gpu gpu = known_gpu("h200");
  const Variant& variant = find_variant("hopper");
  int good = 0;
  int all = 0;
  for (const Dtype dtype : kDtypes) {
    for (const Stage stage : {Stage::gemm1, Stage::gemm2}) {
      const Problem problem = problem_for(dtype, 2048);
      std::vector<Point> points = legal_points(gpu, problem, stage);
      shuffle(points, 7);
      points.resize(std::min<std::size_t>(points.size(), 3));
      for (const Point& point : points) {
        CAPTURE(point.key());
        const Cubin cubin = compile(variant.source(gpu, problem, stage, point), "sm_90a");
        CAPTURE(cubin.error);
        REQUIRE(cubin.ok());
        const GemmLaunch launch = variant.launch(problem, stage, point);
        const CompiledKernel& kernel = cubin.kernels.at(0);
        CHECK(kernel.resources.max_threads == launch.num_threads);
        CHECK(kernel.resources.static_smem_bytes == 0);
        const std::string defect = resource_defect(kernel, cubin.log, launch.num_threads);
        CAPTURE(defect);
        CHECK((defect.empty() || defect.starts_with("spill")));
        good += defect.empty() ? 1 : 0;
        ++all;
      }
    }
  }
  CHECK(good * 10 >= all * 8);
}
