// Needs a GPU; skips without one. Small shapes, so that it can run under compute-sanitizer.
#include <doctest/doctest.h>

#include "bench/journey.hpp"
#include "bench/mxfp8.hpp"
#include "bench/step_timer.hpp"
#include "bench/techniques.hpp"
#include "core/error.hpp"
#include "cuda/device.hpp"
#include "lab/reference.hpp"
#include "measure/check.hpp"

using namespace moetune;

namespace {

Problem small_problem(std::int64_t num_tokens) {
  Problem problem;
  problem.shape = {"small", 8, 3, 360, 200};  // rows that are no multiple of a block or a tile
  problem.num_tokens = num_tokens;
  problem.seed = 5;
  return problem;
}

}  // namespace

TEST_CASE("journey: every level is right, gathered in one part and in many") {
  const Gpu gpu = list_gpus().at(0);
  for (const double memory_limit : {1e9, 3e6}) {
    CAPTURE(memory_limit);
    const Problem problem = small_problem(150);
    Journey journey(gpu, problem,
                    {.cache_dir = "", .memory_limit_bytes = memory_limit, .budget_s = 0.2});
    for (const std::int64_t num_tokens : {1, 21, 150}) {
      CAPTURE(num_tokens);
      JourneyRow row;
      row.problem = small_problem(num_tokens);
      row.plan = reference_plan(gpu, row.problem);
      journey.run(row, "");
      for (int i = 0; i < kNumLevels; ++i) {
        const JourneyLevel& level = row.levels.at(static_cast<std::size_t>(i));
        CAPTURE(i);
        CAPTURE(level.reason);
        if (level.status == LevelStatus::skipped) continue;  // no cuBLAS
        CHECK(level.status == LevelStatus::ok);
        CHECK(level.rel_err <= 0.006);
        CHECK(level.timing.median_us > 0);
      }
    }
  }
}

TEST_CASE("journey: a plan that cannot run and a limit too small are failed levels, no more") {
  const Gpu gpu = list_gpus().at(0);
  const Problem problem = small_problem(21);
  Journey journey(gpu, problem, {.cache_dir = "", .memory_limit_bytes = 1000, .budget_s = 0.2});
  JourneyRow row;
  row.problem = problem;
  row.plan = reference_plan(gpu, problem);
  journey.run(row, "gemm1: no such point");
  CHECK(row.levels[0].status == LevelStatus::ok);
  CHECK(row.levels[1].status == LevelStatus::failed);
  CHECK(row.levels[2].status == LevelStatus::failed);
  CHECK(row.levels[3].status == LevelStatus::ok);
  CHECK(row.levels[6].status == LevelStatus::failed);
  CHECK(row.levels[6].reason == "gemm1: no such point");
}

TEST_CASE("levels: rows padded to a block, and to the fullest expert, give the same result") {
  if (!Cublas::missing().empty()) {
    MESSAGE("skipped: no cuBLAS");
    return;
  }
  const Gpu gpu = list_gpus().at(0);
  const Problem problem = small_problem(77);
  Compiler compiler(arch_name(gpu), "", 0);
  Layer layer(gpu, problem, false, compiler);
  const auto batch = layer.make_batch(problem, 2);
  make_reference(layer, *batch, false);
  for (const int padding : {1, 16, 128, 0}) {
    CAPTURE(padding);
    Levels levels(gpu, layer, "", 1e9);
    levels.set_padding(padding);
    for (const int level : {4, 5}) {
      levels.prepare(level, *batch);
      levels.poison();
      levels.enqueue(level, *batch, 0);
      const Deviation deviation =
          compare(layer, levels.result(), nullptr, batch->reference[0]->out.get<float>(),
                  problem.num_tokens, problem.shape.hidden_size);
      CHECK(judge_deviation(deviation, tolerance(false)) == "");
    }
  }
}

TEST_CASE("techniques: every side of every pair is right") {
  const Gpu gpu = list_gpus().at(0);
  Problem problem;
  problem.shape = {"small", 8, 2, 512, 256};
  problem.num_tokens = 100;
  NumberedCalls calls(false);
  Techniques techniques(gpu, problem, "", calls);
  TechniqueRow row;
  row.problem = problem;
  techniques.run(row, reference_plan(gpu, problem), reference_plan(gpu, problem));
  CHECK(row.pairs.size() == 6);
  for (const TechniquePair& pair : row.pairs) {
    for (const TechniqueSide* side : {&pair.without, &pair.with}) {
      CAPTURE(pair.name);
      CAPTURE(side->label);
      CAPTURE(side->reason);
      if (side->status == LevelStatus::skipped) continue;
      CHECK(side->status == LevelStatus::ok);
      CHECK(side->timing.median_us > 0);
    }
  }
}

TEST_CASE("step timer: steps are launched or reused, padded up, and refuse more than was planned") {
  const Gpu gpu = list_gpus().at(0);
  const Problem problem = small_problem(64);
  Compiler compiler(arch_name(gpu), "", 0);
  Layer layer(gpu, problem, false, compiler);
  const auto batch = layer.make_batch(problem, 2);
  const Plan plan = reference_plan(gpu, problem);
  const std::vector<CountPlan> plans = {{1, plan}, {8, plan}, {64, plan}};
  StepTimer launched(gpu, layer, *batch, plans, compiler, {4, 2, false});
  StepTimer reused(gpu, layer, *batch, plans, compiler, {4, 2, true});
  CHECK(launched.step_s(5) > 0);
  CHECK(launched.step_s(64) > 0);
  const std::int64_t before = launched.num_launches();
  launched.step_s(64);
  CHECK(launched.num_launches() == before + 1);
  const double once = reused.step_s(8);
  CHECK(once > 0);
  CHECK(reused.step_s(3) == once);
  CHECK_THROWS_AS(launched.step_s(65), Error);
}

TEST_CASE(
    "mxfp8: the kernel agrees with the definition bit by bit, in whole blocks and ragged ends") {
  const Gpu gpu = list_gpus().at(0);
  if (gpu.cc() < 89) {
    MESSAGE("skipped: the GPU has no e4m3");
    return;
  }
  Mxfp8Bench bench(gpu, "");
  for (const auto& [rows, columns] : {std::pair<std::int64_t, std::int64_t>{1, 32},
                                      {3, 96},
                                      {128, 512},
                                      {257, 1024},
                                      {1000, 2880}}) {
    CAPTURE(rows);
    CAPTURE(columns);
    Mxfp8Row row{"small", rows, "x", rows, columns, {}, {}, 0};
    CHECK_NOTHROW(bench.measure(row, 7));  // throws where a bit differs
    CHECK(row.rel_err > 0.01);
    CHECK(row.rel_err < 0.04);
    CHECK(row.timing.median_us > 0);
    CHECK(row.copy.median_us > 0);
  }
  Mxfp8Row odd{"small", 1, "x", 1, 40, {}, {}, 0};
  CHECK_THROWS_AS(bench.measure(odd, 7), Error);
}
