#include <doctest/doctest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <limits>
#include <set>
#include <string>

#include "core/error.hpp"
#include "core/statistics.hpp"
#include "lab/layer.hpp"
#include "lab/routing.hpp"
#include "measure/check.hpp"
#include "measure/timing.hpp"
#include "program/builder.hpp"

using namespace moetune;

namespace {

Problem problem_with(Routing routing, std::int64_t num_tokens = 200) {
  Problem problem;
  problem.shape = {"test", 16, 4, 256, 128};
  problem.num_tokens = num_tokens;
  problem.routing = std::move(routing);
  problem.seed = 11;
  return problem;
}

std::vector<int> rows_of_experts(const RoutingData& data) {
  std::vector<int> rows(16);
  for (const auto id : data.topk_ids) ++rows.at(static_cast<std::size_t>(id));
  std::sort(rows.rbegin(), rows.rend());
  return rows;
}

std::string error_of_trace(const std::string& text) {
  const auto path = std::filesystem::temp_directory_path() / "moe-tune-trace.txt";
  std::ofstream(path) << text;
  std::string message;
  try {
    make_routing(problem_with({RoutingKind::file, 0, 0, path.string()}), 0);
  } catch (const Error& error) {
    CHECK(error.kind() == ErrorKind::input);
    message = error.what();
  }
  std::filesystem::remove(path);
  const auto name = message.find("moe-tune-trace.txt");
  return name == std::string::npos ? message : message.substr(name);
}

}  // namespace

TEST_CASE("routing: a token's experts are distinct, its weights positive with sum 1") {
  for (const Routing& routing :
       {Routing{}, Routing{RoutingKind::zipf, 1.2, 0, ""}, Routing{RoutingKind::hot, 0, 5, ""}}) {
    const RoutingData data = make_routing(problem_with(routing), 0);
    REQUIRE(data.topk_ids.size() == 800);
    REQUIRE(data.topk_weights.size() == 800);
    for (std::size_t t = 0; t < 200; ++t) {
      const std::set<int> experts(data.topk_ids.begin() + static_cast<std::ptrdiff_t>(4 * t),
                                  data.topk_ids.begin() + static_cast<std::ptrdiff_t>(4 * t + 4));
      CHECK(experts.size() == 4);
      CHECK(*experts.begin() >= 0);
      CHECK(*experts.rbegin() < 16);
      float sum = 0;
      for (std::size_t k = 0; k < 4; ++k) {
        CHECK(data.topk_weights[4 * t + k] > 0);
        sum += data.topk_weights[4 * t + k];
      }
      CHECK(sum == doctest::Approx(1.0));
    }
  }
}

TEST_CASE("routing: the same seed and index repeat, another of either differs") {
  const Problem problem = problem_with({});
  Problem reseeded = problem;
  reseeded.seed = 12;
  const auto ids = make_routing(problem, 3).topk_ids;
  CHECK(make_routing(problem, 3).topk_ids == ids);
  CHECK(make_routing(problem, 4).topk_ids != ids);
  CHECK(make_routing(reseeded, 3).topk_ids != ids);
}

TEST_CASE("routing: zipf is skewed, hot leaves experts empty, uniform does neither") {
  const auto uniform = rows_of_experts(make_routing(problem_with({}, 4000), 0));
  const auto zipf =
      rows_of_experts(make_routing(problem_with({RoutingKind::zipf, 2.0, 0, ""}, 4000), 0));
  const auto hot =
      rows_of_experts(make_routing(problem_with({RoutingKind::hot, 0, 6, ""}, 4000), 0));
  CHECK(uniform.front() < 1.2 * uniform.back());
  CHECK(zipf.front() > 10 * zipf.back());
  CHECK(std::count(hot.begin(), hot.end(), 0) == 10);
}

TEST_CASE("routing: a trace is taken as it is, from another line for another index") {
  const auto path = std::filesystem::temp_directory_path() / "moe-tune-good-trace.txt";
  std::ofstream(path) << "0 1 2 3\n\n4,5,6,7\n8 9 10 11\n";
  const Problem problem = problem_with({RoutingKind::file, 0, 0, path.string()}, 2);
  CHECK(make_routing(problem, 0).topk_ids == std::vector<std::int32_t>{0, 1, 2, 3, 4, 5, 6, 7});
  CHECK(make_routing(problem, 1).topk_ids == std::vector<std::int32_t>{8, 9, 10, 11, 0, 1, 2, 3});
  std::filesystem::remove(path);
}

TEST_CASE("routing: a bad trace is refused with its line") {
  CHECK(error_of_trace("0 1 2 3\n0 1 2 16\n") == "moe-tune-trace.txt:2: expert 16 is not in 0..15");
  CHECK(error_of_trace("0 1 2 2\n") == "moe-tune-trace.txt:1: expert 2 twice");
  CHECK(error_of_trace("0 1 2\n") == "moe-tune-trace.txt:1: 3 expert ids, the model's top_k is 4");
  CHECK(error_of_trace("0 1 x 2\n") == "moe-tune-trace.txt:1: not a list of expert ids: '0 1 x 2'");
  CHECK(error_of_trace("\n") == "moe-tune-trace.txt: no expert ids");
}

TEST_CASE("layer: what does not fit the GPU says how much it needs") {
  Problem problem = problem_with({}, 1);
  problem.shape = {"big", 256, 8, 7168, 2048};
  CHECK_NOTHROW(check_fits(problem, true, 141e9));
  CHECK_THROWS_WITH_AS(check_fits(problem, false, 16e9),
                       "big with 1 tokens needs about 22.5 GB of GPU memory, 16.0 GB are free; "
                       "use --tp or --ep to take a shard, or fewer tokens",
                       Error);
}

TEST_CASE("layer: the grid holds every tile that any routing can need") {
  CHECK(max_row_tiles(1, 8, 16) == 1);
  CHECK(max_row_tiles(64, 8, 16) == 12);  // 57 rows on one expert, one on each of the others
  CHECK(max_row_tiles(4, 128, 64) == 4);  // four experts with a row each
  CHECK(max_row_tiles(4096, 8, 64) == 72);
}

TEST_CASE("judge: a NaN error, an infinite one and one above the bound do not pass") {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  CHECK(judge_deviation({0.005, 0.01, 0}, tolerance(false)).empty());
  CHECK_FALSE(judge_deviation({0.007, 0.01, 0}, tolerance(false)).empty());
  CHECK_FALSE(judge_deviation({0.005, 0.07, 0}, tolerance(false)).empty());
  CHECK_FALSE(judge_deviation({nan, 0.01, 0}, tolerance(false)).empty());
  CHECK_FALSE(judge_deviation({0.005, nan, 0}, tolerance(false)).empty());
  CHECK_FALSE(judge_deviation({0.005, 0.01, 1}, tolerance(false)).empty());
  CHECK(judge_deviation({0.02, 0.2, 0}, tolerance(true)).empty());
  CHECK_FALSE(judge_deviation({0.026, 0.2, 0}, tolerance(true)).empty());
}

TEST_CASE("timing: percentiles interpolate between samples") {
  const std::vector<double> samples{10, 20, 30, 40, 50};
  CHECK(percentile(samples, 50) == 30);
  CHECK(percentile(samples, 10) == doctest::Approx(14));
  CHECK(percentile(samples, 90) == doctest::Approx(46));
  CHECK(percentile(std::vector<double>{7}, 90) == 7);
}
