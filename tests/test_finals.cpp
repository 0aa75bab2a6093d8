// Which points a search measures again and how, which wins, and which go into layers.
#include <doctest/doctest.h>

#include <algorithm>
#include <map>

#include "tests/fake_search.hpp"
#include "tune/finals.hpp"

using namespace moetune;
using namespace moetune::fake;

namespace {

Trial trial(double median_us, int fp8, int fuse_combine, int warps = 4) {
  Trial trial;
  Point point({{"NUM_WARPS", warps}, {"FP8", fp8}, {"FUSE_COMBINE", fuse_combine}});
  trial.plan = Plan{{{"gemm2", "portable", point}}};
  trial.timing.median_us = median_us;
  return trial;
}

std::vector<double> times(const std::vector<Trial>& trials) {
  std::vector<double> times;
  times.reserve(trials.size());
  for (const Trial& trial : trials) times.push_back(trial.timing.median_us);
  return times;
}

}  // namespace

TEST_CASE("pick: the fastest within the band, and the first of each fp8 choice") {
  const std::vector<Trial> trials{trial(100, 1, 0), trial(105, 1, 0, 8),  trial(106, 1, 0, 16),
                                  trial(107, 1, 0), trial(108, 1, 0, 32), trial(120, 1, 0, 2),
                                  trial(300, 0, 0)};
  CHECK(times(pick(trials, 4, 1.1)) == std::vector<double>{100, 105, 106, 107, 300});
  CHECK(times(pick(trials, 9, 1.1)) == std::vector<double>{100, 105, 106, 107, 108, 300});
  CHECK(times(pick(trials, 1, 1.01)) == std::vector<double>{100, 300});
  const std::vector<Trial> settled{trial(101, 1, 0), trial(100.5, 1, 0, 8), trial(100, 1, 0, 16)};
  CHECK(times(pick(settled, 1, 1.0)) == std::vector<double>{101, 100.5, 100});
  CHECK(pick({}, 2, 1.1).empty());
}

TEST_CASE("pick: other variants and ways of the sum too, where a launch less may make up for it") {
  std::vector<Trial> small{trial(8, 1, 0)};
  int warps = 1;
  for (const double us : {9.0, 9.1, 9.2, 9.3, 10.3}) small.push_back(trial(us, 1, 1, warps++));
  // The first one's kernel, its tiles in other orders: two of the three go on.
  for (const int group : {8, 16}) {
    small.insert(small.begin() + 2, trial(9.05, 1, 1, 1));
    small[2].plan.steps[0].point.set("GROUP_SIZE_M", group);
  }
  small.push_back(trial(9.4, 1, 1));
  small.back().plan.steps[0].variant = "swap_ab";
  CHECK(times(pick(small, 1, 1.03)) == std::vector<double>{8, 9, 9.05, 9.1, 9.2, 9.4});
  const std::vector<Trial> large{trial(300, 1, 1), trial(305, 1, 1, 8), trial(400, 1, 0)};
  CHECK(times(pick(large, 2, 1.03)) == std::vector<double>{300, 305});
}

TEST_CASE("settle: preferences cost at most half of what a tie is, but for the pinned point") {
  const auto settled = [](const std::vector<double>& times_us, const Plan* pinned) {
    std::vector<Trial> trials;
    int smem_bytes = 4096;
    for (const double us : times_us) {
      trials.push_back(trial(us, 1, 0, smem_bytes));
      trials.back().smem_bytes = smem_bytes /= 2;
    }
    CHECK(settle(trials, pinned, {}).size() == 2);
    return times(trials);
  };
  CHECK(settled({100, 100.4, 100.9}, nullptr) == std::vector<double>{100.4, 100, 100.9});
  const Plan pinned = trial(0, 1, 0, 1024).plan;
  CHECK(settled({100, 100.4, 100.9}, &pinned) == std::vector<double>{100.9, 100.4, 100});
}

TEST_CASE("finals: packed rows, behind in a GEMM by itself, may win in the layer") {
  class Packing final : public FakeVariant {
    SearchSpace space(const Gpu& gpu, const Problem& problem, Stage stage,
                      Fp8Mode fp8) const override {
      SearchSpace space = FakeVariant::space(gpu, problem, stage, fp8);
      if (stage == Stage::gemm1) space.parameters.push_back({"GATHER", {0, 1}, 1, ""});
      return space;
    }
  } variant;
  FakeSearch fake;
  fake.settings.token_counts = {16};
  fake.settings.variants = {&variant};
  fake.settings.reference = [](const Gpu& gpu, const Problem& problem) {
    Plan plan = reference(gpu, problem);
    plan.steps[0].point.set("GATHER", 1);
    return plan;
  };
  double packed_us = 1.04;
  FakeEvaluator evaluator;
  evaluator.alter = [&](const Request& request, Trial& trial) {
    trial.timing.median_us *= 10;  // so that a launch more or less does not count
    if (request.plan.steps.front().point.value_or("GATHER", 1) == 1) return;
    trial.timing.median_us *= request.stage == Stage::layer ? 0.97 : packed_us;
  };
  CHECK(fake.run(evaluator).table.entries.at(16).plan.steps[0].point.at("GATHER") == 0);
  packed_us = 1.2;  // too far behind to be worth a look
  FakeSearch other;
  other.settings = fake.settings;
  evaluator.requests.clear();
  CHECK(other.run(evaluator).table.entries.at(16).plan.steps[0].point.at("GATHER") == 1);
}

TEST_CASE("finals: a kernel of its own for the weighted sum or SwiGLU counts as 1 us more") {
  CHECK(as_in_layer(trial(8, 1, 0)).timing.median_us == doctest::Approx(9));
  CHECK(as_in_layer(trial(8, 1, 1)).timing.median_us == doctest::Approx(8));
  Trial first = trial(8, 1, 0);
  first.plan.steps[0].point = Point({{"NUM_WARPS", 4}, {"FUSE_SWIGLU", 0}});
  first.timing.p90_us = 8.5;
  CHECK(as_in_layer(first).timing.median_us == doctest::Approx(9));
  CHECK(as_in_layer(first).timing.p90_us == doctest::Approx(9.5));
  first.plan.steps[0].point = Point({{"NUM_WARPS", 4}});
  CHECK(as_in_layer(first).timing.median_us == doctest::Approx(8));
  Trial layer = trial(20, 1, 0);
  layer.plan.steps.insert(layer.plan.steps.begin(), first.plan.steps.front());
  CHECK(as_in_layer(layer).timing.median_us == doctest::Approx(20));
  Trial failed = trial(0, 1, 0);
  failed.status = TrialStatus::wrong_result;
  CHECK(as_in_layer(failed).timing.median_us == doctest::Approx(0));
}

TEST_CASE("search: what is slower than the reference is not chosen, nor what is within noise") {
  FakeSearch fake;
  fake.settings.token_counts = {16};
  FakeEvaluator evaluator;
  const Plan pinned = reference({}, {});
  evaluator.alter = [&](const Request& request, Trial& trial) {
    if (request.stage != Stage::layer) return;
    trial.timing.median_us = request.plan == pinned ? 200 : 199;
  };
  const TableEntry entry = fake.run(evaluator).table.entries.at(16);
  CHECK(entry.plan == pinned);
  CHECK_FALSE(entry.ties.empty());
  CHECK(std::find(entry.ties.begin(), entry.ties.end(), pinned.key()) == entry.ties.end());
  CHECK(entry.speedup == doctest::Approx(1));
}

TEST_CASE("finals: the confidence interval covers the spread of samples and of rounds") {
  const Timing steady{100, 99, 101, 20, 0};
  const TimeInterval one = confidence(std::vector{steady});
  CHECK(one.low_us == doctest::Approx(99.57).epsilon(0.001));  // 1.96 * 1.2533 * 0.78 / sqrt(20)
  CHECK(one.high_us == doctest::Approx(100.43).epsilon(0.001));
  const TimeInterval two = confidence(std::vector{steady, steady});
  CHECK(two.high_us - two.low_us < one.high_us - one.low_us);
  const TimeInterval drifted = confidence(std::vector{steady, Timing{104, 103, 105, 20, 0}});
  CHECK(drifted.low_us == doctest::Approx(100));
  CHECK(drifted.high_us == doctest::Approx(104));
}

TEST_CASE("finals: short rounds in turns, from which drops out what is behind") {
  FakeSearch fake;
  fake.settings.token_counts = {16};
  FakeEvaluator evaluator;
  const TableEntry entry = fake.run(evaluator).table.entries.at(16);
  std::map<std::string, int> rounds;
  std::string before;
  for (const Request& request : evaluator.requests) {
    if (!request.thorough || request.stage != Stage::layer) continue;
    CHECK(request.num_samples == kRoundSamples);
    ++rounds[request.plan.key()];
    CHECK((before != request.plan.key() || rounds[before] > 1));
    before = request.plan.key();
  }
  CHECK(rounds.at(entry.plan.key()) == 6);
  CHECK(rounds.at(reference({}, {}).key()) == 1);  // 127 us slower
  CHECK(entry.timing.num_samples == 5 * kRoundSamples);
  CHECK(entry.reference_us > 1.1 * entry.timing.median_us);
}

TEST_CASE("finals: what dropped out at faster clocks does not win") {
  FakeSearch fake;
  fake.settings.token_counts = {16};
  FakeEvaluator evaluator;
  std::map<std::string, int> rounds;
  evaluator.alter = [&](const Request& request, Trial& trial) {
    if (request.thorough) trial.timing.median_us *= 1 + 0.05 * rounds[request.plan.key()]++;
  };
  const TableEntry drifted = fake.run(evaluator).table.entries.at(16);
  FakeSearch other;
  other.settings.token_counts = {16};
  FakeEvaluator undrifted;
  CHECK(drifted.plan == other.run(undrifted).table.entries.at(16).plan);
}

TEST_CASE("finals: a round at another clock is discarded, and counted") {
  FakeSearch fake;
  fake.settings.token_counts = {16};
  FakeEvaluator evaluator;
  std::map<std::string, int> rounds;
  evaluator.alter = [&](const Request& request, Trial& trial) {
    if (!request.thorough) return;
    const bool is_slow = ++rounds[request.plan.key()] == 2;
    trial.timing.clock_mhz = is_slow ? 1200 : 1700;
    if (is_slow) trial.timing.median_us *= 1.4;
  };
  const TableEntry entry = fake.run(evaluator).table.entries.at(16);
  CHECK(entry.timing.num_samples == 4 * kRoundSamples);
  CHECK(entry.timing.num_discarded == kRoundSamples);
  CHECK(entry.timing.clock_mhz == 1700);
  FakeEvaluator steady;
  FakeSearch other;
  other.settings.token_counts = {16};
  CHECK(entry.timing.median_us ==
        doctest::Approx(other.run(steady).table.entries.at(16).timing.median_us));
}
