// What a layer's call launches, on which tensors: without a GPU.
#include <doctest/doctest.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "core/error.hpp"
#include "program/build.hpp"
#include "program/steps.hpp"
#include "search/legal_points.hpp"

using namespace moetune;

namespace {

Problem problem_of(Dtype dtype, std::int64_t num_tokens) {
  Problem problem;
  problem.shape = {"custom", 8, 2, 256, 512};
  problem.dtype = dtype;
  problem.num_tokens = num_tokens;
  return problem;
}

std::int64_t bytes_of(const LayerProgram& program, std::string_view name) {
  const TensorId id = program.find(name);
  return id < 0 ? 0 : program.tensors.at(static_cast<std::size_t>(id)).bytes;
}

std::vector<std::string> steps_of(const LayerProgram& program) {
  std::vector<std::string> steps;
  for (const Op& op : program.ops) steps.push_back(op.work.step);
  return steps;
}

// Plans of every variant: some of its points in pairs, and some of those whose GEMMs share a
// launch.
std::vector<Plan> some_plans(const Gpu& gpu, const Problem& problem) {
  std::vector<Plan> plans;
  const Fp8Mode fp8 = default_fp8_mode(problem.dtype);
  for (const auto& variant : variants()) {
    if (!variant->supports(gpu, problem.dtype)) continue;
    std::vector<Point> points[2];
    for (const Stage stage : {Stage::gemm1, Stage::gemm2}) {
      std::vector<Point>& of = points[stage == Stage::gemm1 ? 0 : 1];
      of = enumerate(variant->space(gpu, problem, stage, fp8)).points;
      shuffle(of, 5);
    }
    const std::size_t count = std::min({points[0].size(), points[1].size(), std::size_t{40}});
    const std::string name(variant->name());
    for (std::size_t i = 0; i < count; ++i)
      plans.push_back({{{"gemm1", name, points[0][i]}, {"gemm2", name, points[1][i]}}});
    std::vector<Plan> joined = variant->joined_plans(gpu, problem, fp8);
    joined.resize(std::min(joined.size(), std::size_t{10}));
    plans.insert(plans.end(), joined.begin(), joined.end());
  }
  return plans;
}

}  // namespace

TEST_CASE("program: every plan's call reads what was written and stays within its tensors") {
  for (const char* name : {"a100", "h200", "b200"}) {
    const Gpu gpu = known_gpu(name);
    for (const Dtype dtype : {Dtype::bf16, Dtype::fp8_block, Dtype::fp8_tensor}) {
      for (const std::int64_t num_tokens : {1, 5000}) {
        const Problem problem = problem_of(dtype, num_tokens);
        const std::vector<Plan> plans = some_plans(gpu, problem);
        if (is_fp8(dtype) && gpu.cc() < 89) continue;
        CHECK(plans.size() >= 20);
        for (const Plan& plan : plans) {
          CAPTURE(name);
          CAPTURE(plan.key());
          const LayerProgram layer = build(gpu, problem, plan, Stage::layer);
          CHECK(program_defect(layer) == "");
          CHECK(layer.setup.empty());
          CHECK(layer.fp8 == is_fp8(dtype));
          CHECK(workspace_bytes(layer) >= bytes_of(layer, "activation"));
          if (find_variant(plan.steps[1].variant).fuses_gemms(plan.steps[1].point)) {
            CHECK_THROWS_WITH_AS(build(gpu, problem, plan, Stage::gemm2),
                                 doctest::Contains("run the layer"), Error);
            continue;
          }
          for (const Stage stage : {Stage::gemm1, Stage::gemm2}) {
            const LayerProgram alone = build(gpu, problem, plan, stage);
            CHECK(program_defect(alone) == "");
            CHECK(alone.setup.size() == (num_tokens * 2 > 2048 ? 2 : 1));
            CHECK(alone.result.by_position == (stage == Stage::gemm1));
          }
        }
      }
    }
  }
}

TEST_CASE("program: a defect is found") {
  const Gpu gpu = known_gpu("h200");
  const Problem problem = problem_of(Dtype::bf16, 3);
  const LayerProgram good = build(gpu, problem, reference_plan(gpu, problem), Stage::layer);
  REQUIRE(program_defect(good) == "");
  LayerProgram no_sort = good;
  no_sort.ops.erase(no_sort.ops.begin());
  CHECK(program_defect(no_sort).find("which nothing wrote") != std::string::npos);
  LayerProgram no_combine = good;
  no_combine.ops.pop_back();
  CHECK(program_defect(no_combine) == "nothing writes the output");
  LayerProgram outside = good;
  outside.ops[1].arguments[0].pointers[0].tensor_offset = 1 << 30;
  CHECK(program_defect(outside).find("outside of") != std::string::npos);
  LayerProgram writes_weights = good;
  writes_weights.ops[1].uses.push_back({tensor::w2, Access::write});
  CHECK(program_defect(writes_weights).find("writes w2") != std::string::npos);
  LayerProgram unsaid = good;
  unsaid.ops[1].uses.clear();
  CHECK(program_defect(unsaid).find("unsaid") != std::string::npos);
}

TEST_CASE("program: what a call keeps between its kernels, counted by hand") {
  Problem problem = problem_of(Dtype::bf16, 3);
  Plan plan = reference_plan({}, problem);
  // bf16: 6 rows of gate and up, of the activation, of the second GEMM; 3 rows of the output.
  LayerProgram program = build({}, problem, plan, Stage::layer);
  CHECK(bytes_of(program, "gate_up") == 6 * 2 * 512 * 2);
  CHECK(bytes_of(program, "activation") == 6 * 512 * 2);
  CHECK(bytes_of(program, "y") == 6 * 256 * 2);
  CHECK(bytes_of(program, "out") == 3 * 256 * 2);
  CHECK(bytes_of(program, "sorted_slots") == 6 * 4);
  CHECK(steps_of(program) ==
        std::vector<std::string>{"sort", "GEMM1", "activation", "GEMM2", "combine"});
  plan.steps[1].point.set("SPLIT_K", 4);  // fp32 partial sums
  CHECK(bytes_of(build({}, problem, plan, Stage::layer), "y") == 6 * 256 * 4 * 4);
  plan.steps[1].point.set("SPLIT_K", 1);
  plan.steps[0].point.set("FUSE_SWIGLU", 1);  // gate and up never reach memory
  program = build({}, problem, plan, Stage::layer);
  CHECK(bytes_of(program, "gate_up") == 0);
  CHECK(steps_of(program) == std::vector<std::string>{"sort", "GEMM1", "GEMM2", "combine"});
  for (Step& step : plan.steps) step.point.set("FP8", 1);
  // 3 rows of the input and 6 of the activation, with 2 and 4 scales each.
  program = build({}, problem, plan, Stage::layer);
  CHECK(bytes_of(program, "x_q") == 3 * 256);
  CHECK(bytes_of(program, "x_scale") == 3 * 4 * 2);
  CHECK(bytes_of(program, "activation_q") == 6 * 512);
  CHECK(bytes_of(program, "activation_scale") == 6 * 4 * 4);
  const Variant& hopper = find_variant("hopper");
  const Gpu h200 = known_gpu("h200");
  plan.steps[1] = {"gemm2", "hopper",
                   hopper.space(h200, problem, Stage::gemm2, Fp8Mode::off).reference()};
  plan.steps[1].point.set("FUSE_COMBINE", 1);  // the second GEMM's rows never reach memory
  program = build(h200, problem, plan, Stage::gemm2);
  CHECK(bytes_of(program, "y") == 0);
  CHECK(steps_of(program) == std::vector<std::string>{"clear", "GEMM2"});
  plan.steps.pop_back();
  CHECK_THROWS_WITH_AS(build({}, problem, plan, Stage::layer),
                       doctest::Contains("lacks its step gemm2"), Error);
}

TEST_CASE("program: scratch tensors lie apart, and those of the setup by themselves") {
  const Gpu gpu = known_gpu("h200");
  const Problem problem = problem_of(Dtype::bf16, 3000);
  const LayerProgram program = build(gpu, problem, reference_plan(gpu, problem), Stage::gemm1);
  std::int64_t sum = 0;
  for (const bool of_setup : {false, true}) {
    const WorkspaceLayout layout = workspace_layout(program, of_setup);
    CHECK(layout.bytes > 0);
    sum += layout.bytes;
    std::int64_t end = 0;
    for (std::size_t i = 0; i < layout.offsets.size(); ++i) {
      if (layout.offsets[i] < 0) continue;
      CHECK(program.is_set_up(static_cast<TensorId>(i)) == of_setup);
      CHECK(layout.offsets[i] % kTensorAlignment == 0);
      CHECK(layout.offsets[i] >= end);
      end = layout.offsets[i] + program.tensors[i].bytes;
    }
    CHECK(end <= layout.bytes);
  }
  CHECK(workspace_bytes(program) == sum);
}

TEST_CASE("program: more experts or slots than the sort holds are refused, saying how many") {
  Problem problem = problem_of(Dtype::bf16, 1 << 20);
  CHECK_THROWS_WITH_AS(build({}, problem, reference_plan({}, problem), Stage::layer),
                       doctest::Contains("at most 1048575 tokens"), Error);
  problem.num_tokens = 1;
  problem.shape.num_experts = 1025;
  CHECK_THROWS_WITH_AS(build({}, problem, reference_plan({}, problem), Stage::layer),
                       doctest::Contains("at most 1024"), Error);
}
