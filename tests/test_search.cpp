#include <doctest/doctest.h>

#include <map>
#include <set>

#include "core/error.hpp"
#include "search/legal_points.hpp"
#include "search/strategy.hpp"

using namespace moetune;

namespace {

// 5 x 4 x 2 = 40 points; M * N <= 64 leaves 28, of which 4 break the second rule.
SearchSpace small_space() {
  SearchSpace space;
  space.parameters = {
      {"M", {1, 2, 4, 8, 16}, 4, ""}, {"N", {1, 4, 16, 64}, 4, ""}, {"FP8", {0, 1}, 0, ""}};
  space.constraints = {{"area",
                        [](const Point& p) -> std::optional<std::string> {
                          const int area = p.at("M") * p.at("N");
                          if (area <= 64) return std::nullopt;
                          return "area " + std::to_string(area) + " is over 64";
                        }},
                       {"fp8 rows", [](const Point& p) -> std::optional<std::string> {
                          if (p.at("FP8") == 0 || p.at("M") > 1) return std::nullopt;
                          return "fp8 needs 2 rows";
                        }}};
  return space;
}

SearchSpace impossible_space() {
  SearchSpace space = small_space();
  space.constraints.push_back(
      {"never", [](const Point&) { return std::optional<std::string>("nothing is legal"); }});
  return space;
}

std::vector<std::string> drain(Strategy& strategy) {
  std::vector<std::string> keys;
  while (const auto point = strategy.next()) {
    keys.push_back(point->key());
    strategy.observe(*point, Trial{});
  }
  return keys;
}

std::vector<std::string> run(std::string_view name, const SearchSpace& space,
                             const StrategyOptions& options = {}) {
  return drain(*make_strategy(name, space, options));
}

std::set<std::string> legal_keys(const SearchSpace& space) {
  std::set<std::string> keys;
  for (const auto& point : enumerate(space).points) keys.insert(point.key());
  return keys;
}

Point point(int m, int n, int fp8) {
  return Point({{"M", m}, {"N", n}, {"FP8", fp8}});
}

}  // namespace

TEST_CASE("legal points: every raw point is either legal or counted under its first rule") {
  const auto legal = enumerate(small_space());
  CHECK(legal.points.size() == 24);
  REQUIRE(legal.rejected.size() == 2);
  CHECK(legal.rejected.at("area").count == 12);
  CHECK(legal.rejected.at("fp8 rows").count == 4);
  CHECK(legal.rejected.at("fp8 rows").example == "fp8 needs 2 rows");
  CHECK(legal.rejected.at("area").example == "area 128 is over 64");
  CHECK(legal.num_rejected() + legal.points.size() == 40);
}

TEST_CASE("legal points: a space without a legal point is empty, with counts") {
  const auto legal = enumerate(impossible_space());
  CHECK(legal.points.empty());
  CHECK(legal.num_rejected() == 40);
}

TEST_CASE("grid: proposes every legal point exactly once") {
  const auto keys = run("grid", small_space());
  const std::set<std::string> distinct(keys.begin(), keys.end());
  CHECK(keys.size() == distinct.size());
  CHECK(distinct == legal_keys(small_space()));
  CHECK(make_strategy("grid", small_space(), {})->expected() == keys.size());
}

TEST_CASE("grid: the order is fixed by the seed") {
  CHECK(run("grid", small_space(), {.seed = 7}) == run("grid", small_space(), {.seed = 7}));
  CHECK(run("grid", small_space(), {.seed = 7}) != run("grid", small_space(), {.seed = 8}));
}

TEST_CASE("grid: a short prefix has seen every value of every parameter") {
  SearchSpace space;
  for (const char* name : {"A", "B", "C", "D", "E"}) {
    space.parameters.push_back({name, {1, 2, 3, 4, 5, 6}, 1, ""});
  }
  const auto strategy = make_strategy("grid", space, {});
  std::map<std::string, std::set<int>> seen;
  for (int i = 0; i < 78; ++i) {  // 1 % of 7776
    const auto proposed = strategy->next();
    REQUIRE(proposed);
    for (const auto& [name, value] : proposed->values()) seen[name].insert(value);
  }
  for (const auto& parameter : space.parameters) CHECK(seen[parameter.name].size() == 6);
}

TEST_CASE("grid: a space without a legal point ends at once") {
  CHECK(run("grid", impossible_space()).empty());
}

TEST_CASE("random: the same seed gives the same sequence") {
  const StrategyOptions options{.count = 10, .seed = 3};
  CHECK(run("random", small_space(), options) == run("random", small_space(), options));
  CHECK(run("random", small_space(), options) !=
        run("random", small_space(), {.count = 10, .seed = 4}));
}

TEST_CASE("random: the sequence of a seed is the same on every machine") {
  // Worked out apart from this program: mt19937_64 from seed 1, Fisher-Yates from the end.
  const std::vector<std::string> expected = {"M=8,N=1,FP8=1", "M=4,N=16,FP8=0", "M=2,N=4,FP8=1"};
  CHECK(run("random", small_space(), {.count = 3, .seed = 1}) == expected);
}

TEST_CASE("random: points are legal and distinct, and as many as asked for") {
  const auto keys = run("random", small_space(), {.count = 10, .seed = 3});
  const auto legal = legal_keys(small_space());
  CHECK(keys.size() == 10);
  CHECK(std::set<std::string>(keys.begin(), keys.end()).size() == 10);
  for (const auto& key : keys) CHECK(legal.count(key) == 1);
  CHECK(make_strategy("random", small_space(), {.count = 10})->expected() == 10);
}

TEST_CASE("random: ends when the space is exhausted") {
  CHECK(run("random", small_space(), {.count = 1000}).size() == 24);
  CHECK(make_strategy("random", small_space(), {.count = 1000})->expected() == 24);
}

TEST_CASE("random: every legal point is about equally likely to come first") {
  std::map<std::string, int> times;
  const int num_draws = 2400;
  for (std::uint64_t seed = 0; seed < num_draws; ++seed) {
    ++times[run("random", small_space(), {.count = 1, .seed = seed}).at(0)];
  }
  CHECK(times.size() == 24);
  for (const auto& [key, count] : times) {  // 100 expected, standard deviation 10
    CHECK_MESSAGE(count > 50, key);
    CHECK_MESSAGE(count < 150, key);
  }
}

TEST_CASE("random: a count of 0 is a usage error") {
  CHECK_THROWS_AS(run("random", small_space()), Error);
}

TEST_CASE("ablation: the reference comes first, then one parameter at a time, legal values only") {
  const std::vector<std::string> expected = {"M=4,N=4,FP8=0",  // start
                                             "M=1,N=4,FP8=0", "M=2,N=4,FP8=0",
                                             "M=8,N=4,FP8=0", "M=16,N=4,FP8=0",  // M
                                             "M=4,N=1,FP8=0", "M=4,N=16,FP8=0",  // N; 64 is illegal
                                             "M=4,N=4,FP8=1"};
  CHECK(run("ablation", small_space()) == expected);
  const auto strategy = make_strategy("ablation", small_space(), {});
  CHECK(strategy->expected() == expected.size());
  CHECK(strategy->note().empty());
}

TEST_CASE("ablation: varies around a given start") {
  const auto keys = run("ablation", small_space(), {.start = point(1, 64, 0)});
  CHECK(keys == std::vector<std::string>{"M=1,N=64,FP8=0", "M=1,N=1,FP8=0", "M=1,N=4,FP8=0",
                                         "M=1,N=16,FP8=0"});
}

TEST_CASE("ablation: an illegal start moves to the nearest legal point and says so") {
  const auto strategy = make_strategy("ablation", small_space(), {.start = point(8, 16, 1)});
  CHECK(strategy->next()->key() == "M=4,N=16,FP8=1");
  CHECK(strategy->note() ==
        "ablation: the start point breaks rule 'area' (area 128 is over 64); it moved to the "
        "nearest legal point: M 8 -> 4");
}

TEST_CASE("ablation: a start off the grid moves onto it") {
  const auto strategy = make_strategy("ablation", small_space(), {.start = point(7, 4, 0)});
  CHECK(strategy->next()->key() == "M=8,N=4,FP8=0");
  CHECK(strategy->note().find("M 7 -> 8") != std::string::npos);
}

TEST_CASE("ablation: parameters that the start lacks take their reference value") {
  const auto strategy = make_strategy("ablation", small_space(), {.start = Point({{"M", 8}})});
  CHECK(strategy->next()->key() == "M=8,N=4,FP8=0");
  CHECK(strategy->note().empty());
}

TEST_CASE("ablation: a parameter that the space lacks is an error that names it") {
  CHECK_THROWS_WITH_AS(make_strategy("ablation", small_space(), {.start = Point({{"WARPS", 4}})}),
                       doctest::Contains("no parameter WARPS"), Error);
}

TEST_CASE("ablation: a space without a legal point proposes nothing and says why") {
  const auto strategy = make_strategy("ablation", impossible_space(), {});
  CHECK_FALSE(strategy->next());
  CHECK(strategy->note().find("no point of the space is legal") != std::string::npos);
}

TEST_CASE("registry: an unknown strategy names the nearest one") {
  CHECK_THROWS_WITH_AS(run("ablatoin", small_space()), doctest::Contains("did you mean 'ablation'"),
                       Error);
  CHECK(strategy_names() == std::vector<std::string_view>{"grid", "random", "ablation", "guided",
                                                          "differential_evolution"});
}

TEST_CASE("legal points: come in the space's order, each as the space itself would make it") {
  const SearchSpace space = small_space();
  std::vector<Point> expected;
  for (std::uint64_t i = 0; i < space.size(); ++i)
    if (!space.reject(space.at(i))) expected.push_back(space.at(i));
  CHECK(enumerate(space).points == expected);
}

TEST_CASE("legal points: a space whose first parameter has no value has none") {
  SearchSpace space = small_space();
  space.parameters[0].values.clear();
  CHECK(enumerate(space).points.empty());
}
