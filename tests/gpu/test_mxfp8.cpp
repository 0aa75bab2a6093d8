// Needs a GPU; skips without one. The MXFP8 GEMM and layer against the fp32 judge.
#include <doctest/doctest.h>

#include <string>

#include "bench/mxfp8_layer.hpp"
#include "core/error.hpp"
#include "search/legal_points.hpp"

using namespace moetune;

namespace {

// Where e4m3 is widened, products are summed in fp32; the matrix unit sums its own with fewer bits.
double fp32_bound(const Gpu& gpu, const Mxfp8Config& config) {
  return mxfp8_path(gpu, config) == Mxfp8Path::widened ? 1e-5 : 2e-3;
}

bool has_e4m3(const Gpu& gpu) {
  if (gpu.cc() >= 89) return true;
  MESSAGE("skipped: the GPU has no e4m3");
  return false;
}

// Every point but those that spill, which tune() passes over too; most must remain.
void check_all_points(const Gpu& gpu, const Problem& problem, Mxfp8Layer& layer) {
  for (const Stage stage : {Stage::gemm1, Stage::gemm2}) {
    int checked = 0;
    int spilled = 0;
    const auto check = [&](const Mxfp8Config& config, const Tolerance& tolerance) {
      try {
        const std::string defect = judge_deviation(layer.check(stage, config), tolerance);
        CHECK(defect == "");
        ++checked;
      } catch (const Error& error) {
        if (std::string(error.what()).find("spill") == std::string::npos) throw;
        ++spilled;
      }
    };
    for (const Point& point : enumerate(mxfp8_space(gpu, problem, stage)).points) {
      CAPTURE(to_string(stage));
      CAPTURE(point.key());
      Mxfp8Config config = mxfp8_config(problem, stage, point);
      check(config, kMxfp8Tolerance);
      if (stage == Stage::gemm1) continue;
      config.output = Output::partial;
      const double bound = fp32_bound(gpu, config);
      check(config, {bound, 100 * bound});
    }
    CHECK(checked > 4 * spilled);
  }
}

}  // namespace

TEST_CASE("mxfp8 gemm: plain matmuls are right at every point, in bf16 and fp32") {
  const Gpu gpu = list_gpus().at(0);
  if (!has_e4m3(gpu)) return;
  for (const auto& [m, n, k] : {std::tuple<std::int64_t, std::int64_t, std::int64_t>{128, 256, 512},
                                {256, 512, 1024},
                                {1, 32, 32},
                                {77, 96, 2880}}) {
    CAPTURE(m);
    CAPTURE(n);
    CAPTURE(k);
    Problem problem;
    problem.shape = {"matmul", 1, 1, n, k};  // GEMM2 is [m, k] [n, k]
    problem.num_tokens = m;
    problem.seed = 3;
    Mxfp8Layer layer(gpu, problem, "", 0);
    layer.prepare(m);
    check_all_points(gpu, problem, layer);
  }
}

TEST_CASE("mxfp8 layer: right on several routings, whose rows are no multiple of a tile") {
  const Gpu gpu = list_gpus().at(0);
  if (!has_e4m3(gpu)) return;
  for (const char* routing : {"uniform", "zipf:1.2", "hot:3"}) {
    CAPTURE(routing);
    Problem problem;
    problem.shape = {"small", 8, 3, 352, 224};
    problem.routing = parse_routing(routing);
    problem.num_tokens = 150;
    problem.seed = 5;
    Mxfp8Layer layer(gpu, problem, "", 0);
    for (const std::int64_t num_tokens : {1, 21, 150}) {
      CAPTURE(num_tokens);
      problem.num_tokens = num_tokens;
      layer.prepare(num_tokens);
      // tune() compares every point's bf16 result itself.
      if (problem.routing.kind == RoutingKind::uniform) check_all_points(gpu, problem, layer);
      for (const Stage stage : {Stage::gemm1, Stage::gemm2}) {
        const Mxfp8Product gemm = layer.tune(stage);
        CHECK(gemm.num_points > 0);
        CHECK(gemm.num_wrong == 0);
        CHECK(gemm.timing.median_us > 0);
        CHECK(gemm.rel_err <= kMxfp8Tolerance.rel_err);
      }
      const Mxfp8Product whole = layer.measure();
      CHECK(whole.timing.median_us > 0);
      CHECK(whole.rel_err <= kMxfp8Tolerance.rel_err);
      CHECK(whole.bf16_err > 0.02);
      CHECK(whole.bf16_err <= kMxfp8QuantisationTolerance.rel_err);
    }
  }
}

TEST_CASE("mxfp8 layer: a shape without whole blocks of scales is refused, naming the rule") {
  const Gpu gpu = list_gpus().at(0);
  if (!has_e4m3(gpu)) return;
  Problem problem;
  problem.shape = {"odd", 8, 2, 360, 224};
  problem.num_tokens = 16;
  CHECK_THROWS_WITH_AS(Mxfp8Layer(gpu, problem, "", 0), doctest::Contains("scale_blocks"), Error);
}
