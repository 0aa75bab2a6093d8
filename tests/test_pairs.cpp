// Which layers go into the finals.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "tests/fake_search.hpp"
#include "tune/climb.hpp"
#include "tune/pairs.hpp"

using namespace moetune;
using namespace moetune::fake;

namespace {

constexpr std::int64_t kNumTokens = 16;

// Plans of a GEMM, each a step away from the one before; what each takes by itself is its M.
std::vector<Plan> gemms(const std::string& op, int count, int fp8 = 0) {
  std::vector<Plan> plans;
  for (int i = 0; i < count; ++i) {
    const Point point({{"BLOCK_SIZE_M", 100 + i}, {"BLOCK_SIZE_N", 64}, {"FP8", fp8}});
    plans.push_back(Plan{{{op, "fake", point}}});
  }
  return plans;
}

int m_of(const Plan& layer, std::size_t step) {
  return layer.steps[step].point.at("BLOCK_SIZE_M");
}

// A runner whose layers take what `time_us` says; below 0: they fail.
struct Layers {
  explicit Layers(std::function<double(const Plan&)> time_us)
      : journal(fake.journal_path(),
                journal_identity(fake.table.identity, fake.problem, fake.settings), "test", false),
        runner(
            evaluator, journal, [] { return false; }, nobody) {
    evaluator.alter = [time_us = std::move(time_us)](const Request& request, Trial& trial) {
      trial.timing.median_us = time_us(request.plan);
      if (trial.timing.median_us < 0) trial.status = TrialStatus::wrong_result;
    };
  }
  FakeSearch fake;
  FakeEvaluator evaluator;
  Journal journal;
  SearchListener nobody;
  Runner runner;
};

double sum(const Plan& layer) {
  return m_of(layer, 0) + m_of(layer, 1);
}

bool contains(const std::vector<Plan>& plans, const Plan& plan) {
  return std::find(plans.begin(), plans.end(), plan) != plans.end();
}

}  // namespace

TEST_CASE("pairs: where they are few all go on, unmeasured") {
  Layers layers(sum);
  const std::vector<Plan> pairs =
      promising_pairs(layers.runner, gemms("gemm1", 4), gemms("gemm2", 6), kNumTokens);
  CHECK(pairs.size() == 24);
  CHECK(pairs == all_pairs(gemms("gemm1", 4), gemms("gemm2", 6)));
  CHECK(layers.evaluator.requests.empty());
}

TEST_CASE("pairs: of many a round of each GEMM beside the other's best finds the promising ones") {
  // In layers the fourth second one is 30 us faster than its own time says.
  const auto time_us = [](const Plan& layer) { return sum(layer) - (m_of(layer, 1) == 103) * 30; };
  Layers layers(time_us);
  const std::vector<Plan> firsts = gemms("gemm1", 10);
  const std::vector<Plan> seconds = gemms("gemm2", 12);
  const std::vector<Plan> pairs = promising_pairs(layers.runner, firsts, seconds, kNumTokens);
  // Each is checked; then all take turns.
  CHECK(layers.evaluator.requests.size() == 2 * (10 + 12 - 1));
  for (std::size_t i = 0; i < layers.evaluator.requests.size(); ++i) {
    const Request& request = layers.evaluator.requests[i];
    CHECK(request.stage == Stage::layer);
    CHECK(request.thorough);
    CHECK(request.beside.size() == (i < 21 ? 0 : 21));
  }
  CHECK(layers.evaluator.num_prefetched == 21);
  REQUIRE(pairs.size() == 6);  // 173 us and at most 3 % more
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    CHECK(m_of(pairs[i], 0) == 100 + static_cast<int>(i));
    CHECK(m_of(pairs[i], 1) == 103);
  }
  Layers equal([](const Plan&) { return 100.0; });
  CHECK(promising_pairs(equal.runner, firsts, seconds, kNumTokens).size() == 16);
}

TEST_CASE("pairs: a GEMM that fails in layers is left out; where the best two do, all go on") {
  const std::vector<Plan> firsts = gemms("gemm1", 5);
  const std::vector<Plan> seconds = gemms("gemm2", 6);
  Layers one([](const Plan& layer) { return m_of(layer, 0) == 101 ? -1 : sum(layer); });
  const std::vector<Plan> pairs = promising_pairs(one.runner, firsts, seconds, kNumTokens);
  CHECK_FALSE(pairs.empty());
  for (const Plan& layer : pairs) CHECK(m_of(layer, 0) != 101);
  Layers best([](const Plan& layer) { return sum(layer) == 200 ? -1 : sum(layer); });
  CHECK(promising_pairs(best.runner, firsts, seconds, kNumTokens).size() == 30);
}

TEST_CASE("pairs: both GEMMs have the same FP8 choice") {
  std::vector<Plan> firsts = gemms("gemm1", 5);
  std::vector<Plan> seconds = gemms("gemm2", 6);
  for (const Plan& plan : gemms("gemm1", 2, 1)) firsts.push_back(plan);
  for (const Plan& plan : gemms("gemm2", 1, 1)) seconds.push_back(plan);
  Layers layers(sum);
  const std::vector<Plan> pairs = promising_pairs(layers.runner, firsts, seconds, kNumTokens);
  for (const Plan& layer : pairs) {
    CHECK(layer.steps[0].point.at("FP8") == layer.steps[1].point.at("FP8"));
  }
  CHECK(contains(pairs, Plan{{firsts[5].steps[0], seconds[6].steps[0]}}));
  CHECK(contains(pairs, Plan{{firsts[0].steps[0], seconds[0].steps[0]}}));
  CHECK(promising_pairs(layers.runner, {}, seconds, kNumTokens).empty());
}

TEST_CASE("climb: from a short layer to the fastest one around it, step by step") {
  // A ridge from M 64 to M 16 in both GEMMs, with N 128 the best of GEMM1 and N 32 of GEMM2.
  const auto ridge = [](const Plan& layer) {
    double us = 20;
    for (const Step& step : layer.steps) {
      us += std::log2(step.point.at("BLOCK_SIZE_M") / 16.0);
      us +=
          std::abs(std::log2(step.point.at("BLOCK_SIZE_N") / (step.op == "gemm1" ? 128.0 : 32.0)));
    }
    return us;
  };
  const auto climb_in = [](Layers& layers, const std::vector<int>& starts_n = {64}) {
    const Gpu& gpu = layers.evaluator.gpu();
    const Proposals stages[] = {{layers.fake.settings, gpu, layers.fake.problem, Stage::gemm1},
                                {layers.fake.settings, gpu, layers.fake.problem, Stage::gemm2}};
    std::vector<Plan> starts;
    for (const int n : starts_n) {
      starts.push_back(reference(gpu, layers.fake.problem));
      starts.back().steps[1].point.set("BLOCK_SIZE_M", 32);
      starts.back().steps[1].point.set("BLOCK_SIZE_N", n);
    }
    return climb(layers.runner, stages, starts);
  };
  Layers layers(ridge);
  const std::vector<Plan> found = climb_in(layers);
  REQUIRE_FALSE(found.empty());
  CHECK(ridge(found.front()) == doctest::Approx(20));  // five steps from 25
  std::set<std::string> looked_at;
  for (const Request& request : layers.evaluator.requests) {
    CHECK_FALSE(request.thorough);
    CHECK(looked_at.insert(request.plan.key()).second);
  }

  // From the fastest start no step gains; from the next one does.
  const auto trap = [](const Plan& layer) {
    const int n = layer.steps[1].point.at("BLOCK_SIZE_N");
    return n == 256 ? 18.0 : n == 128 ? 21.5 : n == 64 ? 21.0 : 25.0;
  };
  Layers one(trap), two(trap);
  CHECK(trap(climb_in(one).front()) == 21);
  CHECK(trap(climb_in(two, {64, 128}).front()) == 18);

  Layers flat([](const Plan&) { return 50.0; });
  CHECK(climb_in(flat).size() == 6);
  CHECK(flat.evaluator.requests.size() > 1 + 8);  // no gain: a second step, and no more
  CHECK(flat.evaluator.requests.size() < 1 + 8 + 3 * 8);
  Layers large([](const Plan&) { return 101.0; });
  CHECK(climb_in(large).empty());
  CHECK(large.evaluator.requests.size() == 1);
  Layers broken([](const Plan&) { return -1.0; });
  CHECK(climb_in(broken).empty());
}
