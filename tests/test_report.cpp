#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include "report/summary.hpp"
#include "tests/report_trials.hpp"

using namespace moetune;

namespace {

TableEntry entry(double layer_us, double reference_us, Source source = Source::measured) {
  TableEntry entry;
  entry.plan = {{{"gemm1", "portable", point(16)}, {"gemm2", "portable", point(32, 1)}}};
  entry.timing = {.median_us = layer_us,
                  .p10_us = layer_us - 1,
                  .p90_us = layer_us + 1,
                  .num_samples = 20,
                  .num_discarded = 0};
  entry.reference_us = reference_us;
  entry.speedup = reference_us / layer_us;
  entry.rel_err = 0.0031;
  entry.source = source;
  return entry;
}

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

}  // namespace

TEST_CASE("compact: known parameters are short and what says nothing is left out") {
  CHECK(compact(Point({{"BLOCK_SIZE_M", 64},
                       {"BLOCK_SIZE_N", 128},
                       {"BLOCK_SIZE_K", 64},
                       {"NUM_WARPS", 4},
                       {"NUM_STAGES", 3},
                       {"FP8", 0},
                       {"GROUP_SIZE_M", 1},
                       {"ORDER", 0},
                       {"SPLIT_K", 1},
                       {"FUSE_SWIGLU", 0}})) == "M64 N128 K64 W4 S3");
  CHECK(compact(Point({{"BLOCK_SIZE_M", 16},
                       {"FP8", 1},
                       {"GROUP_SIZE_M", 16},
                       {"ORDER", 1},
                       {"SPLIT_K", 4},
                       {"FUSE_SWIGLU", 1},
                       {"CLUSTER", 2}})) == "M16 FP8 G16 O1 SK4 FUSED CLUSTER=2");
  CHECK(compact(Point(
            {{"NUM_STAGES", 2}, {"STEP_BYTES", 256}, {"LOAD_STEPS", 1}, {"JOIN_GEMM1", 1}})) ==
        "S2 ST256 JOINED");
  CHECK(compact(Point({{"LOAD_STEPS", 2}, {"JOIN_GEMM1", 0}})) == "L2");
  CHECK(compact(Point()).empty());
}

TEST_CASE("time text: a time that is no measurement says what it is") {
  CHECK(time_text(83.25, Source::measured) == "83.2");
  CHECK(time_text(83.25, Source::recorded) == "83.2 recorded");
  CHECK(time_text(83.25, Source::predicted, " us") == "83.2 us predicted");
  CHECK(time_text(0, Source::predicted) == "-");
  CHECK(time_text(kNan, Source::measured) == "-");
  CHECK(time_text(kInf, Source::measured) == "-");
}

TEST_CASE("speedup statistics: geometric mean, best, and the share above 1") {
  const auto stats = speedup_stats(std::vector<double>{4.0, 1.0, 0.5, 2.0});
  REQUIRE(stats);
  CHECK(stats->avg_speedup == doctest::Approx(std::sqrt(2.0)));
  CHECK(stats->best_speedup == 4.0);
  CHECK(stats->win_rate == 0.5);  // 1.0 is no win
  CHECK(stats->num_token_counts == 4);
}

TEST_CASE("speedup statistics: what is unknown does not count") {
  const auto stats = speedup_stats(std::vector<double>{2.0, 0, kNan, kInf, -1});
  REQUIRE(stats);
  CHECK(stats->num_token_counts == 1);
  CHECK(stats->avg_speedup == doctest::Approx(2.0));
  CHECK_FALSE(speedup_stats({}));
  CHECK_FALSE(speedup_stats(std::vector<double>{0, kNan}));
}

TEST_CASE("better: NaN, zero, failed and screened-out trials are never chosen") {
  const Trial good = timed(Stage::gemm1, 1, point(16), 10);
  CHECK(better(nullptr, good) == &good);
  for (const double time_us : {kNan, kInf, 0.0, -1.0}) {
    const Trial trial = timed(Stage::gemm1, 1, point(32), time_us);
    CHECK(better(&good, trial) == &good);
    CHECK(better(nullptr, trial) == nullptr);
  }
  Trial wrong = timed(Stage::gemm1, 1, point(32), 5);
  wrong.status = TrialStatus::wrong_result;
  CHECK(better(&good, wrong) == &good);
  Trial screened = timed(Stage::gemm1, 1, point(32), 5);
  screened.screened_out = true;
  CHECK(better(&good, screened) == &good);
}

TEST_CASE("better: the faster wins, but a full look beats a screening look") {
  const Trial slow = timed(Stage::gemm1, 1, point(16), 10);
  const Trial fast = timed(Stage::gemm1, 1, point(32), 9);
  const Trial brief = timed(Stage::gemm1, 1, point(64), 8, Source::measured, 3);
  CHECK(better(&slow, fast) == &fast);
  CHECK(better(&fast, slow) == &fast);
  CHECK(better(&fast, brief) == &fast);
  CHECK(better(&brief, slow) == &slow);
}

TEST_CASE("stage results: the best and the reference of every stage and token count") {
  const std::vector<Trial> trials = {
      timed(Stage::gemm2, 1, point(64), 8), timed(Stage::gemm1, 8, point(64), 12),
      timed(Stage::gemm1, 8, point(16), 6), timed(Stage::gemm1, 1, point(32), 5),
      bad(TrialStatus::wrong_result, point(16), "", "nan")};
  const auto results = stage_results(trials, reference());
  REQUIRE(results.size() == 3);
  CHECK(results[0].stage == Stage::gemm1);
  CHECK(results[0].num_tokens == 1);
  CHECK_FALSE(results[0].reference);
  CHECK(results[0].speedup() == 0);
  CHECK(results[1].num_tokens == 8);
  CHECK(results[1].best.plan == stage_plan(Stage::gemm1, point(16)));
  CHECK(results[1].speedup() == 2);
  CHECK(results[2].stage == Stage::gemm2);
  CHECK(results[2].speedup() == 1);  // the reference itself
  CHECK(stage_results({}, reference()).empty());
}

TEST_CASE("stage results: the same point of another variant is not the reference") {
  Trial other = timed(Stage::gemm1, 1, point(64), 5);
  other.plan.steps[0].variant = "wgmma";
  CHECK_FALSE(stage_results(std::vector<Trial>{other}, reference()).at(0).reference);
}

TEST_CASE("summary: rejected points are counted by rule, failed ones by status") {
  const std::vector<Trial> trials = {
      bad(TrialStatus::rejected, point(16), "registers", "needs 300"),
      bad(TrialStatus::rejected, point(32), "registers", "needs 400"),
      bad(TrialStatus::rejected, point(64), "smem", "needs 1"),
      bad(TrialStatus::launch_failed, point(64), "", "illegal address"),
      timed(Stage::gemm1, 1, point(64), 5)};
  const auto summary =
      summarise(Table(), trials, reference(), {{"smem", {.count = 7, .example = "needs 311296"}}});
  CHECK(summary.rejected.at("registers").count == 2);
  CHECK(summary.rejected.at("registers").example == "needs 300");
  CHECK(summary.rejected.at("smem").count == 8);
  CHECK(summary.rejected.at("smem").example == "needs 311296");
  CHECK(summary.failed.at(TrialStatus::launch_failed).count == 1);
  CHECK(summary.failed.size() == 1);
  CHECK(summary.num_trials == 5);
}

TEST_CASE("rejected text: the most frequent rule first") {
  CHECK(
      rejected_text({{"a", {.count = 2, .example = "x"}}, {"bb", {.count = 30, .example = "y"}}}) ==
      "count  reason  for example\n"
      "   30  bb      y\n"
      "    2  a       x\n");
  CHECK(rejected_text({}).empty());
}

TEST_CASE("summary text: a measured search") {
  Table table;
  table.entries[1] = entry(50, 100);
  table.entries[64] = entry(100, 50);
  table.entries[64].ties = {"another plan"};
  const std::vector<Trial> trials = {timed(Stage::gemm1, 1, point(64), 20),
                                     timed(Stage::gemm1, 1, point(16), 8),
                                     bad(TrialStatus::compile_failed, point(32), "", "no such op")};
  CHECK(summary_text(summarise(table, trials, reference(), {})) ==
        R"(tokens  gemm1  gemm2    layer us  reference us  speedup  rel_err  source    note
     1  M16    M32 FP8      50.0         100.0    2.00x  0.00310  measured
    64  M16    M32 FP8     100.0          50.0    0.50x  0.00310  measured  tie
M N K: BLOCK_SIZE, W: NUM_WARPS, S: NUM_STAGES, G: GROUP_SIZE_M, O: ORDER, SK: SPLIT_K,
C: CLUSTER_SIZE, B: BLOCKS_PER_SM, L: LOAD_STEPS, ST: STEP_BYTES, FUSED: FUSE_SWIGLU,
SUMS: FUSE_COMBINE, JOINED: JOIN_GEMM1, GATHER0: rows are packed first;
left out: G1, SK1, C1, B1, L1, O0 and switches that are off
kernel variant: portable
tie: another plan's time was within noise of this one's

against the reference point: gemm1 portable M64, gemm2 portable M64
avg_speedup: geometric mean over token counts; win_rate: share of them above 1x
       avg_speedup  best_speedup  win_rate  token counts  source
layer        1.00x         2.00x       50%             2  measured
gemm1        2.50x         2.50x      100%             1  measured
gemm2            -             -         -             0  -

3 trials, 0 points rejected, 1 failed

failed
count  reason          for example
    1  compile_failed  no such op
)");
}

TEST_CASE("summary text: plans of several kernel variants name theirs") {
  Table table;
  table.entries[1] = entry(50, 100);
  table.entries[2] = entry(50, 100);
  table.entries[2].plan.steps[0].variant = "wgmma";
  const std::string text = summary_text(summarise(table, {}, reference(), {}));
  CHECK(text.find("     1  portable M16  portable M32 FP8  ") != std::string::npos);
  CHECK(text.find("     2  wgmma M16     portable M32 FP8  ") != std::string::npos);
  CHECK(text.find("kernel variant:") == std::string::npos);
}

TEST_CASE("summary text: recorded and predicted times say so beside the time and in a footnote") {
  Table table;
  table.entries[1] = entry(50, 100, Source::predicted);
  const std::vector<Trial> trials = {timed(Stage::gemm1, 1, point(64), 20, Source::recorded)};
  const std::string text = summary_text(summarise(table, trials, reference(), {}));
  CHECK(text.find("50.0 predicted  100.0 predicted    2.00x        -  predicted\n") !=
        std::string::npos);
  CHECK(text.find("gemm1        1.00x         1.00x        0%             1  recorded\n") !=
        std::string::npos);
  CHECK(text.find("\npredicted: ") != std::string::npos);
  CHECK(text.find("\nrecorded: ") != std::string::npos);
  CHECK(text.find("measured  ") == std::string::npos);
}

TEST_CASE("summary text: an interrupted search without a layer says both") {
  Table table;
  table.missing = {8, 64};
  const std::string text = summary_text(summarise(table, {}, reference(), {}));
  CHECK(text.starts_with("INCOMPLETE: no entry for 8, 64 tokens; --resume"));
  CHECK(text.find("no whole layer has a time") != std::string::npos);
  CHECK(text.find("0 trials, 0 points rejected, 0 failed") != std::string::npos);
}

TEST_CASE("summary json: times, statistics and counts; what is unknown is null") {
  Table table;
  table.entries[8] = entry(50, 100, Source::recorded);
  const std::vector<Trial> trials = {timed(Stage::gemm1, 8, point(16), 8),
                                     bad(TrialStatus::rejected, point(32), "spill", "8 bytes")};
  const auto json = summary_json(summarise(table, trials, reference(), {}));
  CHECK(json["complete"] == true);
  CHECK(json["layer"]["avg_speedup"].get<double>() == doctest::Approx(2.0));
  CHECK(json["layer"]["win_rate"] == 1.0);
  const auto& row = json["layer"]["rows"][0];
  CHECK(row["num_tokens"] == 8);
  CHECK(row["layer_us"] == 50.0);
  CHECK(row["p90_us"] == 51.0);
  CHECK(row["source"] == "recorded");
  CHECK(row["plan"].get<Plan>() == table.entries[8].plan);
  CHECK(json["gemm1"]["rows"][0]["time_us"] == 8.0);
  CHECK(json["gemm1"]["rows"][0]["reference_us"].is_null());
  CHECK(json["gemm1"]["rows"][0]["speedup"].is_null());
  CHECK(json["gemm1"]["avg_speedup"].is_null());
  CHECK(json["gemm2"]["rows"].empty());
  CHECK(json["rejected"]["spill"]["count"] == 1);
  CHECK(json["failed"].empty());
}
