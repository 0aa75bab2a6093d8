// Strategies that learn, and what they learn with.
#include <doctest/doctest.h>

#include <cmath>
#include <set>

#include "search/coordinates.hpp"
#include "search/forest.hpp"
#include "search/legal_points.hpp"
#include "search/strategy.hpp"

using namespace moetune;

namespace {

// 6 * 5 * 4 * 4 = 480 points, of which those with A * B above 48 are illegal.
SearchSpace space() {
  SearchSpace space;
  space.parameters = {{"A", {1, 2, 4, 8, 16, 32}, 4, ""},
                      {"B", {1, 2, 4, 8, 16}, 4, ""},
                      {"C", {2, 3, 4, 5}, 2, ""},
                      {"D", {0, 1, 2, 3}, 0, ""}};
  space.constraints = {{"area", [](const Point& p) -> std::optional<std::string> {
                          if (p.at("A") * p.at("B") <= 48) return {};
                          return "over 48";
                        }}};
  return space;
}

// A valley with its bottom at A=8, B=4, C=4, D=2, and a step in D that depends on C.
double time_us(const Point& p, double wanted_a = 8) {
  const double a = std::log2(p.at("A") / wanted_a);
  const double b = std::log2(p.at("B") / 4.0);
  const double c = p.at("C") - 4;
  const double d = p.at("D") == 2 ? 0 : p.at("C") > 3 ? 0.2 : 0.05;
  return 100 * (1 + 0.08 * a * a + 0.05 * b * b + 0.04 * c * c + d);
}

// Knows A and B only, and puts their bottom elsewhere.
double predicted_us(const Point& p) {
  const double a = std::log2(p.at("A") / 4.0);
  const double b = std::log2(p.at("B") / 4.0);
  return 70 * (1 + 0.05 * a * a + 0.05 * b * b);
}

struct Run {
  std::vector<std::string> keys;
  double best_us = 1e9;
  int num_observed = 0;
  int num_to_best = 0;  // up to and including the best
};

Run run(Strategy& strategy, double wanted_a = 8) {
  Run run;
  std::vector<Point> batch;
  do {
    for (const Point& point : batch) {
      Trial trial;
      trial.timing.median_us = time_us(point, wanted_a);
      if (point.at("C") == 5) trial.status = TrialStatus::launch_failed;
      ++run.num_observed;
      if (trial.status == TrialStatus::ok && trial.timing.median_us < run.best_us) {
        run.best_us = trial.timing.median_us;
        run.num_to_best = run.num_observed;
      }
      strategy.observe(point, trial);
    }
    batch.clear();
    strategy.aim(run.best_us);
    while (const auto point = strategy.next()) {
      batch.push_back(*point);
      run.keys.push_back(point->key());
    }
  } while (!batch.empty());
  return run;
}

Run run(std::string_view name, std::uint64_t seed = 0) {
  const auto strategy = make_strategy(name, space(), {.seed = seed, .predict_us = predicted_us});
  return run(*strategy);
}

}  // namespace

TEST_CASE("coordinates: points are found by their positions, others are not") {
  const SearchSpace of = space();
  const auto points = enumerate(of).points;
  const Coordinates coordinates(of, points);
  REQUIRE(coordinates.num_points() == points.size());
  for (std::size_t i = 0; i < points.size(); ++i) CHECK(coordinates.find(points[i]) == i);
  const auto at =
      coordinates.of(coordinates.find(Point({{"A", 8}, {"B", 2}, {"C", 5}, {"D", 1}})).value());
  CHECK(std::vector<int>(at.begin(), at.end()) == std::vector{3, 1, 3, 1});
  CHECK_FALSE(coordinates.find(Point({{"A", 32}, {"B", 16}, {"C", 5}, {"D", 1}})));  // illegal
  CHECK_FALSE(coordinates.find(Point({{"A", 3}, {"B", 1}, {"C", 5}, {"D", 1}})));    // off the grid
  CHECK_FALSE(coordinates.find(Point({{"A", 8}, {"B", 2}, {"C", 5}})));              // lacks D
  for (const int first : {-1, 9}) {
    std::vector<int> beside(at.begin(), at.end());
    beside[0] = first;
    CHECK_FALSE(coordinates.find(beside));
  }
}

TEST_CASE("forest: reproduces what it saw, and is less sure of what it did not see") {
  std::vector<float> features, targets;
  for (int x = 0; x < 10; ++x) {
    for (int y = 0; y < 10; ++y) {
      if (x > 5 && y > 5) continue;
      features.insert(features.end(), {static_cast<float>(x), static_cast<float>(y)});
      targets.push_back(static_cast<float>(x * y));
    }
  }
  const Forest forest(features, 2, targets, 1);
  const float seen[2] = {3, 4};
  const float unseen[2] = {8, 8};
  CHECK(forest.predict(seen).mean == doctest::Approx(12).epsilon(0.15));
  CHECK(forest.predict(unseen).sd > forest.predict(seen).sd);
}

TEST_CASE(
    "forest: the same seed gives the same forest, rows that differ in their target alone a mean") {
  const std::vector<float> features{1, 1, 2, 2};
  const std::vector<float> targets{10, 20, 30, 50};
  const Forest one(features, 1, targets, 7);
  const Forest other(features, 1, targets, 7);
  for (const float x : {0.5F, 1.0F, 2.0F}) {
    CHECK(one.predict({&x, 1}).mean == other.predict({&x, 1}).mean);
  }
  const float two = 2;
  CHECK(one.predict({&two, 1}).mean == doctest::Approx(40));
  CHECK(one.predict({&two, 1}).sd == doctest::Approx(0));
}

TEST_CASE("guided, differential_evolution: legal points, none twice, the same for the same seed") {
  std::set<std::string> legal;
  for (const Point& point : enumerate(space()).points) legal.insert(point.key());
  for (const char* name : {"guided", "differential_evolution"}) {
    CAPTURE(name);
    const Run once = run(name, 3);
    CHECK(std::set<std::string>(once.keys.begin(), once.keys.end()).size() == once.keys.size());
    for (const std::string& key : once.keys) CHECK(legal.contains(key));
    CHECK(run(name, 3).keys == once.keys);
    CHECK(run(name, 4).keys != once.keys);
  }
}

TEST_CASE("guided: finds the best in a part of the space, though the model points elsewhere") {
  const std::size_t num_legal = enumerate(space()).points.size();
  for (std::uint64_t seed = 0; seed < 10; ++seed) {
    CAPTURE(seed);
    const Run found = run("guided", seed);
    CHECK(found.best_us <= 101);
    CHECK(found.keys.size() < num_legal / 2);
  }
}

TEST_CASE(
    "guided: begins with what was fastest at a neighbouring token count, and needs less then") {
  std::vector<Observation> neighbour;
  for (const Point& point : enumerate(space()).points) {
    if (point.at("D") != 2 && point.at("B") != 4) continue;
    neighbour.push_back({point, predicted_us(point), point.at("C") == 5 ? 0 : time_us(point, 16)});
  }
  const auto strategy = make_strategy("guided", space(), {.predict_us = predicted_us});
  strategy->learn(neighbour);
  const Run warm = run(*strategy);
  CHECK(warm.keys.front() == "A=16,B=2,C=4,D=2");  // 4 is illegal beside 16
  CHECK(warm.best_us == doctest::Approx(100));
  CHECK(warm.num_to_best < run("guided").num_to_best);
}

TEST_CASE("guided: gives up soon where another kernel is far ahead") {
  const auto strategy = make_strategy("guided", space(), {.predict_us = predicted_us});
  std::size_t num_proposed = 0;
  while (true) {
    strategy->aim(20);
    std::vector<Point> batch;
    while (const auto point = strategy->next()) batch.push_back(*point);
    if (batch.empty()) break;
    num_proposed += batch.size();
    for (const Point& point : batch) {
      Trial trial;
      trial.timing.median_us = time_us(point);
      strategy->observe(point, trial);
    }
  }
  CHECK(num_proposed <= 36);
}

TEST_CASE("guided: waits for its batch, and meanwhile tells what may come next") {
  const auto strategy = make_strategy("guided", space(), {.predict_us = predicted_us});
  std::set<std::string> proposed;
  while (const auto point = strategy->next()) proposed.insert(point->key());
  CHECK(proposed.size() == 24);
  const auto likely = strategy->likely(5);
  CHECK(likely.size() == 5);
  for (const Point& point : likely) CHECK_FALSE(proposed.contains(point.key()));
}

TEST_CASE("guided: where every point fails it tries them all") {
  const auto strategy = make_strategy("guided", space(), {.predict_us = predicted_us});
  std::set<std::string> proposed;
  while (true) {
    std::vector<Point> batch;
    while (const auto point = strategy->next()) batch.push_back(*point);
    if (batch.empty()) break;
    Trial failed;
    failed.status = TrialStatus::launch_failed;
    for (const Point& point : batch) {
      proposed.insert(point.key());
      strategy->observe(point, failed);
    }
  }
  CHECK(proposed.size() == enumerate(space()).points.size());
}

TEST_CASE("differential_evolution: finds the valley's bottom, and a count is a limit") {
  CHECK(run("differential_evolution", 1).best_us == doctest::Approx(100));
  const auto strategy = make_strategy("differential_evolution", space(), {.count = 30, .seed = 1});
  CHECK(run(*strategy).keys.size() == 30);
}

TEST_CASE("guided, differential_evolution: spaces of no, one and few points end") {
  SearchSpace tiny;
  tiny.parameters = {{"A", {1}, 1, ""}, {"B", {4}, 4, ""}, {"C", {2, 3}, 2, ""}, {"D", {2}, 2, ""}};
  for (const char* name : {"guided", "differential_evolution"}) {
    CAPTURE(name);
    CHECK(run(*make_strategy(name, tiny, {})).keys.size() == 2);
    SearchSpace none = tiny;
    none.parameters[0].values.clear();
    CHECK(run(*make_strategy(name, none, {})).keys.empty());
  }
}
