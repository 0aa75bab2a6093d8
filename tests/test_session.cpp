#include <doctest/doctest.h>
#include <fmt/format.h>

#include <map>
#include <set>

#include "core/error.hpp"
#include "core/text.hpp"
#include "tests/fake_search.hpp"

using namespace moetune;
using namespace moetune::fake;

namespace {

int point_of(const TableEntry& entry, const char* op, const char* parameter) {
  return entry.plan.find(op)->point.at(parameter);
}

int count(const std::vector<Request>& requests, Stage stage, std::int64_t num_tokens,
          bool thorough) {
  return static_cast<int>(
      std::count_if(requests.begin(), requests.end(), [&](const Request& request) {
        return request.stage == stage && request.num_tokens == num_tokens &&
               request.thorough == thorough;
      }));
}

// Has layers of one launch, in order and not.
class JoiningVariant final : public FakeVariant {
 public:
  std::vector<Plan> joined_plans(const Gpu&, const Problem&, Fp8Mode) const override {
    std::vector<Plan> plans;
    for (const int fuse_combine : {0, 1}) {
      Plan plan = reference({}, {});
      plan.steps[1].point.set("JOIN_GEMM1", 1);
      plan.steps[1].point.set("FUSE_COMBINE", fuse_combine);
      plans.push_back(plan);
    }
    return plans;
  }
};

std::vector<nlohmann::ordered_json> records(const std::string& path, const std::string& kind) {
  std::vector<nlohmann::ordered_json> found;
  std::istringstream lines(read_file(path));
  for (std::string line; std::getline(lines, line);) {
    auto json = nlohmann::ordered_json::parse(line);
    if (json.at("record") == kind) found.push_back(std::move(json));
  }
  return found;
}

}  // namespace

TEST_CASE("search: every token count gets the best layer, and its time beside the reference's") {
  FakeSearch fake;
  FakeEvaluator evaluator;
  const SearchResult result = fake.run(evaluator);
  CHECK(result.table.complete());
  CHECK(result.missing.empty());
  REQUIRE(result.table.entries.size() == 3);
  for (const auto& [num_tokens, entry] : result.table.entries) {
    CHECK(point_of(entry, "gemm1", "BLOCK_SIZE_M") == num_tokens);
    CHECK(point_of(entry, "gemm1", "BLOCK_SIZE_N") == 128);
    CHECK(point_of(entry, "gemm2", "BLOCK_SIZE_N") == 32);
    CHECK(entry.timing.median_us == doctest::Approx(200));
    CHECK(entry.speedup == doctest::Approx(entry.reference_us / 200));
    CHECK(entry.speedup > 1);
    CHECK(entry.timing.num_samples == 5 * kRoundSamples);
  }
  CHECK(entries_of(result.table_path).size() == 3);
}

TEST_CASE("search: a grid looks at every legal point of each stage and token count once") {
  FakeSearch fake;
  FakeEvaluator evaluator;
  const SearchResult result = fake.run(evaluator);
  // 20 points, of which (64|128|256)x256, (128|256)x128 and 256x64 exceed 8192.
  for (const std::int64_t num_tokens : fake.settings.token_counts) {
    CHECK(count(evaluator.requests, Stage::gemm1, num_tokens, false) == 14);
    CHECK(count(evaluator.requests, Stage::gemm2, num_tokens, false) == 14);
  }
  CHECK(result.rejected.at("too_big").count == 6 * 2 * 3);
  CHECK(evaluator.num_prefetched >= 14 * 2 * 3);
}

TEST_CASE("search: the winners of one token count are the first tried at the next") {
  FakeSearch fake;
  fake.settings.token_counts = {16, 17};
  FakeEvaluator evaluator;
  fake.run(evaluator);
  const auto first = std::find_if(evaluator.requests.begin(), evaluator.requests.end(),
                                  [](const Request& r) { return r.num_tokens == 17; });
  REQUIRE(first != evaluator.requests.end());
  CHECK(first->plan.steps[0] == reference({}, {}).steps[0]);
  CHECK(first->stop_above_us == 0);
  CHECK((first + 1)->plan.steps[0].point.at("BLOCK_SIZE_M") == 16);
  CHECK((first + 2)->stop_above_us ==
        doctest::Approx(1.25 * step_us((first + 1)->plan.steps[0], 17)));
}

TEST_CASE("search: GEMMs that share a launch compete as whole layers") {
  JoiningVariant variant;
  for (const bool deterministic : {false, true}) {
    CAPTURE(deterministic);
    FakeSearch fake;
    fake.settings.variants = {&variant};
    fake.settings.token_counts = {16};
    fake.settings.deterministic = deterministic;
    FakeEvaluator evaluator;
    evaluator.alter = [](const Request& request, Trial& trial) {
      if (request.plan.steps.back().point.value_or("JOIN_GEMM1", 0) == 1) {
        trial.timing.median_us = 150;
      }
    };
    const TableEntry entry = fake.run(evaluator).table.entries.at(16);
    CHECK(point_of(entry, "gemm2", "JOIN_GEMM1") == 1);
    CHECK(is_deterministic(entry.plan) == deterministic);
    CHECK(entry.timing.median_us == doctest::Approx(150));
    CHECK(count(evaluator.requests, Stage::layer, 16, false) == 1);
  }
}

TEST_CASE("search: points that fail are data and never win") {
  FakeSearch fake;
  fake.settings.token_counts = {16};
  FakeEvaluator evaluator;
  evaluator.alter = [](const Request& request, Trial& trial) {
    for (const Step& step : request.plan.steps) {
      if (step.point.at("BLOCK_SIZE_M") == 16) {
        trial.status = TrialStatus::wrong_result;
        trial.timing.median_us = 1;
      }
    }
  };
  const SearchResult result = fake.run(evaluator);
  CHECK(point_of(result.table.entries.at(16), "gemm1", "BLOCK_SIZE_M") == 32);
  CHECK(records(fake.journal_path(), "run").at(0).at("status").at("wrong_result") == 8);
}

TEST_CASE("search: where nothing works there is no entry and the table says so") {
  FakeSearch fake;
  FakeEvaluator evaluator;
  evaluator.alter = [](const Request& request, Trial& trial) {
    if (request.num_tokens == 32) trial.status = TrialStatus::launch_failed;
  };
  const SearchResult result = fake.run(evaluator);
  CHECK(result.missing == std::vector<std::int64_t>{32});
  const std::set<std::int64_t> missing{32};
  CHECK(result.table.missing == missing);
  CHECK(result.table.entries.size() == 2);
}

TEST_CASE("search: --fp8 both measures layers of both kinds and takes the faster") {
  FakeSearch fake;
  fake.settings.token_counts = {16};
  fake.settings.fp8 = Fp8Mode::both;
  FakeEvaluator evaluator;
  const SearchResult result = fake.run(evaluator);
  const TableEntry& entry = result.table.entries.at(16);
  CHECK(point_of(entry, "gemm1", "FP8") == 1);
  CHECK(entry.rel_err == doctest::Approx(0.02));
  std::set<int> kinds;
  for (const Request& request : evaluator.requests)
    if (request.stage == Stage::layer) kinds.insert(request.plan.steps[0].point.at("FP8"));
  CHECK(kinds.size() == 2);
}

TEST_CASE("search: a budget of trials is shared, so that no token count is left out") {
  FakeSearch fake;
  fake.settings.budget.num_trials = 30;
  FakeEvaluator evaluator;
  const SearchResult result = fake.run(evaluator);
  CHECK(result.table.complete());
  int looks = 0;
  for (const std::int64_t num_tokens : fake.settings.token_counts) {
    for (const Stage stage : {Stage::gemm1, Stage::gemm2}) {
      const int num = count(evaluator.requests, stage, num_tokens, false);
      CHECK(num >= 4);
      CHECK(num <= 7);
      looks += num;
    }
  }
  CHECK(looks <= 30);
}

TEST_CASE("search: a budget of time that is spent leaves every token count a few looks") {
  FakeSearch fake;
  fake.settings.budget.seconds = 1e-6;
  FakeEvaluator evaluator;
  const SearchResult result = fake.run(evaluator);
  CHECK(result.table.entries.size() == 3);
  for (const std::int64_t num_tokens : fake.settings.token_counts) {
    CHECK(count(evaluator.requests, Stage::gemm1, num_tokens, false) == 8);
  }
}

TEST_CASE("search: ablation starts where it is told and reports each parameter's effect") {
  FakeSearch fake;
  fake.settings.token_counts = {16};
  fake.settings.strategy = "ablation";
  fake.settings.start = Point({{"BLOCK_SIZE_M", 16}});
  FakeEvaluator evaluator;
  const SearchResult result = fake.run(evaluator);
  REQUIRE(result.sensitivities.size() == 2);
  CHECK(result.sensitivities[0].start.point.at("BLOCK_SIZE_M") == 16);
  CHECK(result.sensitivities[0].start.point.at("BLOCK_SIZE_N") == 64);
  CHECK(result.sensitivities[0].parameters.size() == 3);
  fake.settings.start = Point({{"BLOCK_SIZE_Q", 16}});
  CHECK_THROWS_WITH_AS(fake.run(evaluator), doctest::Contains("BLOCK_SIZE_Q"), Error);
}

TEST_CASE("search: a GEMM that only layers show to be the fastest wins") {
  FakeSearch fake;
  fake.settings.num_finalists = 1;
  FakeEvaluator evaluator;
  const auto is_it = [](const Step& step) {
    return step.point.at("BLOCK_SIZE_M") == 16 && step.point.at("BLOCK_SIZE_N") == 256;
  };
  // All GEMM2s are near the fastest, this one the last of them.
  evaluator.alter = [&](const Request& request, Trial& trial) {
    const Step* gemm2 = request.plan.find("gemm2");
    if (request.stage == Stage::gemm2) {
      trial.timing.median_us = is_it(*gemm2) ? 100.9 : 100 + trial.timing.median_us / 1000;
      trial.screened_out = false;
    } else if (request.stage == Stage::layer && is_it(*gemm2)) {
      trial.timing.median_us = 90;
    }
  };
  const SearchResult result = fake.run(evaluator);
  for (const auto& [num_tokens, entry] : result.table.entries) {
    CHECK(point_of(entry, "gemm2", "BLOCK_SIZE_M") == 16);
    CHECK(point_of(entry, "gemm2", "BLOCK_SIZE_N") == 256);
  }
}

TEST_CASE("search: a smaller search makes no entry of the table worse") {
  FakeSearch fake;
  FakeEvaluator evaluator;
  const Plan best = fake.run(evaluator).table.entries.at(32).plan;
  fake.settings.strategy = "random";
  fake.settings.num_random = 1;
  fake.settings.token_counts = {32};
  CHECK(fake.run(evaluator).table.entries.at(32).plan == best);
}

TEST_CASE("search: tuning some token counts of a complete table again leaves it complete") {
  FakeSearch fake;
  FakeEvaluator evaluator;
  fake.run(evaluator);
  fake.settings.token_counts = {16, 32};
  const Table table = read_table(fake.run(evaluator).table_path);
  CHECK(table.complete());
  CHECK(table.entries.size() == 3);
}

TEST_CASE("search: an entry's record holds the interval of its layer's time") {
  FakeSearch fake;
  fake.settings.token_counts = {16};
  FakeEvaluator evaluator;
  int num_layers = 0;
  evaluator.alter = [&](const Request& request, Trial& trial) {
    if (request.stage == Stage::layer) trial.timing.median_us += ++num_layers % 2 == 0 ? 0.5 : 0;
  };
  const double median_us = fake.run(evaluator).table.entries.at(16).timing.median_us;
  const auto entry = records(fake.journal_path(), "entry").at(0);
  CHECK(entry.at("ci95_us").at(0) < median_us);
  CHECK(entry.at("ci95_us").at(1) > median_us);
}

TEST_CASE("search: the journal ends with what the run came to") {
  FakeSearch fake;
  FakeEvaluator evaluator;
  fake.run(evaluator);
  const auto runs = records(fake.journal_path(), "run");
  REQUIRE(runs.size() == 1);
  CHECK(runs[0].at("num_trials") == evaluator.requests.size());
  CHECK(runs[0].at("rejected").at("too_big") == 36);
  CHECK(runs[0].at("status").at("ok") == evaluator.requests.size());
  CHECK(records(fake.journal_path(), "stage").size() == 6);
  CHECK(records(fake.journal_path(), "entry").size() == 3);
}

TEST_CASE(
    "search: the next token count's candidates are announced before the layers are measured") {
  FakeSearch fake;
  FakeEvaluator evaluator;
  std::map<std::pair<std::int64_t, Stage>, int> for_later;  // announced before their race
  std::map<std::int64_t, std::size_t> announced_at;         // requests done by then, by token count
  evaluator.on_prefetch = [&](std::span<const Request> announced) {
    for (const Request& request : announced) {
      if (request.urgency != Urgency::later) continue;
      ++for_later[{request.num_tokens, request.stage}];
      announced_at.try_emplace(request.num_tokens, evaluator.requests.size());
    }
  };
  fake.run(evaluator);
  const std::vector<std::int64_t>& counts = fake.settings.token_counts;
  for (std::size_t i = 0; i < counts.size(); ++i) {
    CAPTURE(counts[i]);
    if (i == 0) continue;
    CHECK(for_later[{counts[i], Stage::gemm2}] == 14);
    CHECK(for_later[{counts[i], Stage::gemm1}] == 14);
    const auto layer = std::find_if(
        evaluator.requests.begin(), evaluator.requests.end(), [&](const Request& request) {
          return request.stage == Stage::layer && request.num_tokens == counts[i - 1];
        });
    const auto first_layer = static_cast<std::size_t>(layer - evaluator.requests.begin());
    CHECK(announced_at.at(counts[i]) < first_layer);
  }
}

TEST_CASE("search: the run's record says how busy the GPU was and what it took beside") {
  FakeSearch fake;
  FakeEvaluator evaluator;
  evaluator.sleep_us = 2000;  // and says that 1000 of it were work
  FakeEvaluator earlier;
  fake.run(earlier, false, [&] { return earlier.requests.size() >= 30; });
  const SearchResult result = fake.run(evaluator, true);
  const auto run = records(fake.journal_path(), "run").back();
  CHECK(run.at("busy_s") ==
        doctest::Approx(0.001 * static_cast<double>(evaluator.requests.size())));
  CHECK(run.at("busy_share").get<double>() > 0.1);
  CHECK(run.at("busy_share").get<double>() < 0.5);
  CHECK(run.at("compile_s") == doctest::Approx(3 * run.at("busy_s").get<double>()));
  CHECK(run.at("peak_host_bytes") > (1 << 20) + (1 << 20));  // this process is the larger part
  CHECK(run.at("clock_check") == false);
  CHECK(run.at("num_discarded") == 0);
  CHECK(run_text(result, false).find("no clock check") != std::string::npos);
  CHECK(run_text(result, false).find("GPU busy") != std::string::npos);
  CHECK(run_text(result, true).find("GPU busy") == std::string::npos);
}

TEST_CASE("search: what the clock discarded is counted, and the entry has the clock") {
  FakeSearch fake;
  fake.settings.token_counts = {16};
  FakeEvaluator evaluator;
  int num_thorough = 0;
  evaluator.alter = [&](const Request& request, Trial& trial) {
    if (!request.thorough) return;
    trial.timing.num_discarded = 5;
    trial.timing.clock_mhz = num_thorough++ % 2 == 0 ? 1400 : 1420;
    trial.timing.unsteady = request.stage == Stage::layer;
  };
  const SearchResult result = fake.run(evaluator);
  const TableEntry& entry = result.table.entries.at(16);
  CHECK(entry.timing.num_discarded == 25);  // of five rounds: the first does not count
  CHECK(entry.timing.clock_mhz >= 1400);
  CHECK(entry.timing.clock_mhz <= 1420);
  CHECK(entry.timing.unsteady);
  const auto run = records(fake.journal_path(), "run").back();
  CHECK(run.at("clock_check") == true);
  CHECK(run.at("num_discarded") == 5 * num_thorough);
  const std::string text = run_text(result, false);
  CHECK(text.find(fmt::format("{} of {} samples discarded by the clock", 5 * num_thorough,
                              10 * num_thorough)) != std::string::npos);
  CHECK(text.find("unsteady") != std::string::npos);
  const auto written = entries_of(result.table_path).at("16");
  CHECK(written.at("clock_mhz") == entry.timing.clock_mhz);
}

TEST_CASE("search: the least error, memory or energy wins where that is the objective") {
  const auto run = [](Objective objective) {
    FakeSearch fake;
    fake.settings.token_counts = {32};
    fake.settings.objective = objective;
    fake.settings.fp8 = Fp8Mode::both;
    FakeEvaluator evaluator;
    evaluator.alter = [](const Request& request, Trial& trial) {
      const Point& point = request.plan.steps.back().point;
      const int m = point.at("BLOCK_SIZE_M");
      const bool fp8 = point.at("FP8") == 1;
      // The slowest, and by far: a race in time would have stopped them.
      trial.workspace_bytes = m == 16 ? 1000 : 2000;
      trial.rel_err = m == 256 ? 0.001 : 0.002;
      if (m == 16 || m == 256) trial.timing.median_us *= 3;
      trial.screened_out =
          request.stop_above_us > 0 && trial.timing.median_us > request.stop_above_us;
      if (request.stage != Stage::layer) return;
      trial.quantisation_err = fp8 ? 0.04 : 0;
      trial.energy_mj = fp8 ? 10 : 20;
    };
    const SearchResult result = fake.run(evaluator);
    REQUIRE(result.table.entries.size() == 1);
    CHECK(result.table.objective == objective);
    CHECK(read_table(result.table_path).objective == objective);
    return result.table.entries.at(32);
  };
  const TableEntry fastest = run(Objective::time);
  CHECK(point_of(fastest, "gemm2", "BLOCK_SIZE_M") == 32);
  CHECK(point_of(fastest, "gemm2", "FP8") == 1);
  const TableEntry exact = run(Objective::error);
  CHECK(point_of(exact, "gemm2", "BLOCK_SIZE_M") == 256);
  CHECK(point_of(exact, "gemm2", "FP8") == 0);
  CHECK(exact.rel_err == 0.001);
  const TableEntry small = run(Objective::memory);
  CHECK(point_of(small, "gemm2", "BLOCK_SIZE_M") == 16);
  CHECK(point_of(small, "gemm2", "FP8") == 1);  // of what is as small the fastest
  CHECK(small.workspace_bytes == 1000);
  CHECK(small.speedup < 1);
  const TableEntry thrifty = run(Objective::energy);
  CHECK(thrifty.energy_mj == 10);
  CHECK(point_of(thrifty, "gemm2", "FP8") == 1);
}

TEST_CASE("search: with FP8 as an axis the best of each choice reaches the layers") {
  FakeSearch fake;
  fake.settings.token_counts = {32};
  fake.settings.fp8 = Fp8Mode::both;
  FakeEvaluator evaluator;
  evaluator.alter = [](const Request& request, Trial& trial) {
    for (const Step& step : request.plan.steps)  // beyond what a race of both would look at
      if (step.point.at("FP8") == 1) trial.timing.median_us -= 50;
    trial.screened_out =
        request.stop_above_us > 0 && trial.timing.median_us > request.stop_above_us;
  };
  fake.run(evaluator);
  const auto is_best_bf16 = [](const Request& request) {
    const Point& first = request.plan.steps.front().point;
    const Point& second = request.plan.steps.back().point;
    return request.stage == Stage::layer && first.at("FP8") == 0 && second.at("FP8") == 0 &&
           first.at("BLOCK_SIZE_N") == 128 && second.at("BLOCK_SIZE_N") == 32;
  };
  CHECK(std::any_of(evaluator.requests.begin(), evaluator.requests.end(), is_best_bf16));
}

TEST_CASE("search: where the objective is not known there is no entry, and that is said") {
  FakeSearch fake;
  fake.settings.token_counts = {32};
  fake.settings.objective = Objective::energy;
  FakeEvaluator evaluator;
  const SearchResult result = fake.run(evaluator);
  CHECK(result.missing == std::vector<std::int64_t>{32});
  CHECK(result.table_path.empty());
}

TEST_CASE("budget: counts and times are read, nonsense is refused") {
  CHECK(parse_budget("500").num_trials == 500);
  CHECK(parse_budget("500").seconds == 0);
  CHECK(parse_budget("10m").seconds == 600);
  CHECK(parse_budget("1.5h").seconds == 5400);
  for (const char* text : {"", "0", "-3", "10x", "m", "1.5", "nan", "1e300"}) {
    CAPTURE(text);
    CHECK_THROWS_AS(parse_budget(text), Error);
  }
}

TEST_CASE("search: within noise less shared memory wins, and the entry says that it is a tie") {
  FakeSearch fake;
  fake.settings.token_counts = {16};
  FakeEvaluator evaluator;
  evaluator.alter = [](const Request& request, Trial& trial) {
    if (request.stage == Stage::layer) return;
    const Point& point = request.plan.steps[0].point;
    const bool is_lean = point.at("BLOCK_SIZE_M") == 32 && point.at("BLOCK_SIZE_N") == 32;
    trial.smem_bytes = is_lean ? 512 : 2048;
    trial.timing.median_us = is_lean ? 60.3 : point.at("BLOCK_SIZE_M") == 16 ? 60 : 100;
    trial.screened_out = false;
  };
  const SearchResult result = fake.run(evaluator);
  const auto stages = records(fake.journal_path(), "stage");
  REQUIRE(stages.size() == 2);
  CHECK(stages[0].at("finalists")[0].at("plan") ==
        "gemm1:fake:BLOCK_SIZE_M=32,BLOCK_SIZE_N=32,FP8=0");
}
