// The one-launch variant's host half: what its rules let pass, and what its cubins need.
#include <doctest/doctest.h>

#include "jit/compiler.hpp"
#include "kernels/decode/host.hpp"
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

// What a plan's GEMM2 may be, whether or not a search tries it.
std::optional<std::string> broken_rule(const Problem& problem, const Point& point) {
  SearchSpace space =
      find_variant("decode").space(known_gpu("h200"), problem, Stage::gemm2, Fp8Mode::both);
  std::erase_if(space.constraints, [](const Constraint& c) { return c.spares_search; });
  const auto rejection = space.reject(point);
  if (!rejection) return {};
  return rejection->rule;
}

}  // namespace

TEST_CASE("decode: runs on sm_90 and later, in bf16 and fp8_block") {
  const Variant& variant = find_variant("decode");
  for (const char* name : {"a100", "rtx4090"}) {
    CHECK_FALSE(variant.supports(known_gpu(name), Dtype::bf16));
  }
  for (const char* name : {"h200", "b200", "rtx5090"}) {
    CHECK(variant.supports(known_gpu(name), Dtype::bf16));
    CHECK(variant.supports(known_gpu(name), Dtype::fp8_block));
    CHECK_FALSE(variant.supports(known_gpu(name), Dtype::fp8_tensor));
  }
}

TEST_CASE("decode: there are whole layers of few tokens, and nothing else to search") {
  const Variant& variant = find_variant("decode");
  const Gpu gpu = known_gpu("h200");
  for (const Dtype dtype : {Dtype::bf16, Dtype::fp8_block}) {
    const Fp8Mode fp8 = default_fp8_mode(dtype);
    for (const std::int64_t num_tokens : {1, 4, 8}) {
      const Problem problem = problem_for(dtype, num_tokens);
      for (const Stage stage : {Stage::gemm1, Stage::gemm2}) {
        const LegalPoints legal = enumerate(variant.space(gpu, problem, stage, fp8));
        CHECK(legal.points.empty());
        CHECK(legal.rejected.contains("joined"));
        CHECK(legal.rejected.size() == 1);
      }
      const auto plans = variant.joined_plans(gpu, problem, fp8);
      CHECK(plans.size() >= 2);
      CHECK(plans.size() <= 8);
      for (const Plan& plan : plans) {
        CAPTURE(plan.key());
        CHECK(pair_defect(plan) == "");
        const Point& point = plan.steps.at(1).point;
        CHECK_FALSE(broken_rule(problem, point).has_value());
        const GemmLaunch launch = variant.launch(problem, Stage::gemm2, point);
        CHECK(variant.fuses_gemms(point));
        CHECK(launch.sums());
        CHECK((launch.smem_bytes + decode::kSortedBytes + 1024) * launch.blocks_per_sm <=
              gpu.smem_per_sm);
        CHECK(launch.num_threads * launch.blocks_per_sm == 512);
        // The sorting's scratch lies where the stages do.
        const decode::Config c = decode::config_of(problem, point);
        CHECK(c.num_warps * c.num_stages * decode::stage_bytes(c) >= 3 * 4 * decode::kMaxSlots);
        CHECK(decode::steady_stages(c) >= 1);
        CHECK(decode::steady_stages(c) < c.num_stages);
      }
    }
    CHECK(variant.joined_plans(gpu, problem_for(dtype, 9), fp8).empty());
    // Less shared memory: smaller ones.
    CHECK_FALSE(variant.joined_plans(known_gpu("rtx5090"), problem_for(dtype, 8), fp8).empty());
  }
  CHECK(variant.joined_plans(gpu, problem_for(Dtype::fp8_tensor, 1), Fp8Mode::on).empty());
}

TEST_CASE("decode: what the kernel cannot do is refused") {
  Problem problem = problem_for(Dtype::bf16, 1);
  const Point point = find_variant("decode")
                          .joined_plans(known_gpu("h200"), problem, Fp8Mode::off)
                          .at(0)
                          .steps.at(1)
                          .point;
  CHECK_FALSE(broken_rule(problem, point).has_value());
  problem.num_tokens = 128;
  CHECK_FALSE(broken_rule(problem, point).has_value());
  problem.num_tokens = 129;
  CHECK(broken_rule(problem, point) == "slots");
  problem = problem_for(Dtype::bf16, 1);
  problem.shape.intermediate_size = 1000;
  CHECK(broken_rule(problem, point) == "multiples");
  problem = problem_for(Dtype::bf16, 1);
  Point changed = point;
  changed.set("NUM_WARPS", 16);
  changed.set("BLOCKS_PER_SM", 2);
  CHECK(broken_rule(problem, changed) == "registers");
  changed = point;
  changed.set("NUM_WARPS", 16);
  changed.set("BLOCKS_PER_SM", 1);
  changed.set("NUM_STAGES", 12);
  CHECK(broken_rule(problem, changed) == "shared_memory");
}

TEST_CASE("decode: a sample of plans compiles for sm_90a with the resources the host expects") {
  const Gpu gpu = known_gpu("h200");
  const Variant& variant = find_variant("decode");
  for (const Dtype dtype : {Dtype::bf16, Dtype::fp8_block}) {
    for (const std::int64_t num_tokens : {1, 8}) {
      const Problem problem = problem_for(dtype, num_tokens);
      const auto plans = variant.joined_plans(gpu, problem, default_fp8_mode(dtype));
      for (std::size_t i = 0; i < plans.size(); i += 3) {
        const Point& point = plans[i].steps.at(1).point;
        CAPTURE(point.key());
        const GemmLaunch launch = variant.launch(problem, Stage::gemm2, point);
        const KernelSource source = variant.source(gpu, problem, Stage::gemm2, point);
        // A plan's two steps are one program.
        CHECK(source.expressions ==
              variant.source(gpu, problem, Stage::gemm1, plans[i].steps.at(0).point).expressions);
        const Cubin cubin = compile(source, arch_name(gpu));
        CAPTURE(cubin.error);
        REQUIRE(cubin.ok());
        const Resources& used = cubin.kernels.at(0).resources;
        CHECK(resource_defect(cubin.kernels.at(0), cubin.log, launch.num_threads) == "");
        CHECK(used.registers * launch.num_threads * launch.blocks_per_sm <= 65536);
        CHECK(used.static_smem_bytes <= decode::kSortedBytes);
      }
    }
  }
}

TEST_CASE("decode: compiles for every architecture from sm_90 on") {
  const Problem problem = problem_for(Dtype::fp8_block, 1);
  for (const char* name : {"h200", "b200", "rtx5090"}) {
    const Gpu gpu = known_gpu(name);
    const Variant& variant = find_variant("decode");
    const auto plans = variant.joined_plans(gpu, problem, Fp8Mode::on);
    REQUIRE(!plans.empty());
    const Point& point = plans.front().steps.at(1).point;
    const Cubin cubin = compile(variant.source(gpu, problem, Stage::gemm2, point), arch_name(gpu));
    CAPTURE(name);
    CAPTURE(cubin.error);
    CHECK(cubin.ok());
  }
}
