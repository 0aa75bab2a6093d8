// Recordings, strategies on them, and what comes out: figures, a plot, an export.
#include <doctest/doctest.h>
#include <zlib.h>

#include <filesystem>

#include "core/error.hpp"
#include "core/text.hpp"
#include "search/strategy.hpp"
#include "tests/synthetic_grid.hpp"
#include "tests/temporary_folder.hpp"
#include "tune/gzip.hpp"
#include "tune/recording.hpp"
#include "tune/replay.hpp"
#include "tune/t4.hpp"

using namespace moetune;

namespace {

void compress(const std::string& from, const std::string& to) {
  const std::string text = read_file(from);
  gzFile file = gzopen(to.c_str(), "wb6");
  REQUIRE(gzwrite(file, text.data(), static_cast<unsigned>(text.size())) > 0);
  gzclose(file);
}

Problem problem() {
  Problem problem;
  problem.shape = {"qwen3-30b-a3b", 128, 8, 2048, 768};
  return problem;
}

// Few rows, then so many that the best tile changes.
Recording recording(const std::vector<std::int64_t>& token_counts = {16, 24, 1024, 2048}) {
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/grid.jsonl";
  synthetic::write_journal(path, known_gpu("h200"), problem(), token_counts);
  return read_recording(path);
}

EntryRun entry_run(std::vector<EntryRun::Improvement> improvements) {
  EntryRun run;
  run.num_points = 100;
  run.num_evaluations = 20;
  run.gpu_s = 9;
  run.improvements = std::move(improvements);
  return run;
}

}  // namespace

TEST_CASE(
    "recording: holds the first looks of each stage and token count, predictions beside them") {
  const Recording read = recording({16, 1024});
  REQUIRE(read.entries.size() == 4);
  CHECK(read.warnings.empty());
  CHECK(read.entries[0].stage == Stage::gemm1);
  CHECK(read.entries[1].num_tokens == 1024);
  CHECK(read.entries[2].stage == Stage::gemm2);
  const RecordedEntry& entry = read.entries[1];
  REQUIRE(entry.spaces.size() == 1);
  Problem at = problem();
  at.num_tokens = 1024;
  const Variant& variant = find_variant("portable");
  const auto legal =
      enumerate(variant.space(known_gpu("h200"), at, Stage::gemm1, Fp8Mode::off)).points;
  CHECK(entry.num_points() == legal.size());
  double best_us = 1e30;
  for (const Point& point : legal) {
    const auto found = entry.coordinates[0].find(point);
    REQUIRE(found);
    const Trial& look = entry.spaces[0].looks[*found];
    if (look.status != TrialStatus::ok) continue;
    CHECK(look.timing.median_us ==
          doctest::Approx(synthetic::time_us(known_gpu("h200"), at, Stage::gemm1, point)));
    best_us = std::min(best_us, look.timing.median_us);
    CHECK(entry.spaces[0].predicted_us[*found] ==
          doctest::Approx(variant.predict_us(known_gpu("h200"), at, Stage::gemm1, point)));
  }
  CHECK(entry.best_us == best_us);
}

TEST_CASE("recording: compressed journals are read, damaged ones are refused by name") {
  const TemporaryFolder folder;
  const std::string plain = folder.path() + "/grid.jsonl";
  synthetic::write_journal(plain, known_gpu("h200"), problem(), {1024});
  compress(plain, plain + ".gz");
  CHECK(read_maybe_gzip(plain + ".gz") == read_file(plain));
  CHECK(read_recording(plain + ".gz").entries.size() == 2);
  std::filesystem::resize_file(plain + ".gz", 5000);
  CHECK_THROWS_WITH_AS(read_recording(plain + ".gz"), doctest::Contains("grid.jsonl.gz"), Error);
  CHECK_THROWS_WITH_AS(read_recording(folder.path() + "/none.jsonl.gz"), doctest::Contains("none"),
                       Error);
}

TEST_CASE("recording: a GPU and kernels that are not known any more leave times, and say so") {
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/grid.jsonl";
  synthetic::write_journal(path, known_gpu("h200"), problem(), {1024});
  std::string text = read_file(path);
  text.replace(text.find("NVIDIA H200"), 11, "NVIDIA H2000");
  write_file_atomically(path, text);
  const Recording read = read_recording(path);
  CHECK(read.entries.size() == 2);
  REQUIRE(read.warnings.size() == 1);
  CHECK(read.warnings[0].find("H2000") != std::string::npos);
  CHECK(replay(read, "guided", 0).back().improvements.back().ratio < 1.05);
}

TEST_CASE("recording: a journal without a look is refused") {
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/grid.jsonl";
  synthetic::write_journal(path, known_gpu("h200"), problem(), {});
  CHECK_THROWS_WITH_AS(read_recording(path), doctest::Contains("search --grid"), Error);
}

TEST_CASE("replay: a look costs the calls that the protocol makes") {
  CHECK(look_cost_us(100, 0) == doctest::Approx(100 * (1 + 8 * 4)));
  CHECK(look_cost_us(100, 90) == doctest::Approx(100 * (1 + 8 * 4)));
  CHECK(look_cost_us(100, 70) == doctest::Approx(100 * (1 + 8 * 2)));   // stopped after one sample
  CHECK(look_cost_us(1000, 0) == doctest::Approx(1000 * (1 + 2 * 3)));  // 2 calls a graph
  CHECK(look_cost_us(1000, 500) == doctest::Approx(1000));              // the check said enough
}

TEST_CASE("replay: a grid sees every point and finds the best; the cost is that of all") {
  const Recording read = recording({16, 1024});
  for (const char* name : {"grid", "random"}) {
    const auto runs = replay(read, name, 0);
    REQUIRE(runs.size() == read.entries.size());
    for (std::size_t i = 0; i < runs.size(); ++i) {
      CHECK(runs[i].num_tokens == read.entries[i].num_tokens);
      CHECK(runs[i].num_evaluations == read.entries[i].num_points());
      CHECK(runs[i].improvements.back().ratio == doctest::Approx(1));
      CHECK(runs[i].later.empty());
      // Dearer than by the best's bound, which a search has only in the end.
      double least_s = 0;
      for (const RecordedSpace& space : read.entries[i].spaces)
        for (const Trial& look : space.looks)
          least_s += look_cost_us(look.timing.median_us, read.entries[i].best_us) / 1e6;
      CHECK(runs[i].gpu_s >= least_s);
      CHECK(runs[i].gpu_s < 1.5 * least_s);
    }
  }
}

TEST_CASE("replay: where a strategy ends too early, what is left follows") {
  for (const EntryRun& run : replay(recording({1024}), "ablation", 0)) {
    REQUIRE(run.reached(0) == nullptr);
    REQUIRE(run.reached_at_last(0) != nullptr);
    CHECK(run.reached_at_last(0)->num_evaluations > run.num_evaluations);
    CHECK(run.reached_at_last(0)->gpu_s > run.gpu_s);
    CHECK(run.later.back().ratio == doctest::Approx(1));
    for (const double band : {0.01, 0.05, 1.0}) {
      if (run.reached(band) != nullptr) CHECK(run.reached_at_last(band) == run.reached(band));
    }
  }
}

TEST_CASE("replay: every strategy stays within the record, also where that lacks the reference") {
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/grid.jsonl";
  synthetic::write_journal(path, known_gpu("h200"), problem(), {2048});
  std::string text;
  std::string line;
  for (std::ifstream file(path); std::getline(file, line);)
    if (line.find("\"NUM_WARPS\":4") == std::string::npos) text += line + "\n";
  write_file_atomically(path, text);
  const Recording read = read_recording(path);
  for (const std::string_view name : strategy_names()) {
    CAPTURE(name);
    const auto runs = replay(read, std::string(name), 1);
    REQUIRE(runs.size() == 2);
    CHECK(runs[0].num_evaluations > 0);
    CHECK(runs[0].num_evaluations <= runs[0].num_points);
  }
}

TEST_CASE("replay: improvements get better, and later") {
  for (const EntryRun& run : replay(recording({1024}), "random", 3)) {
    REQUIRE_FALSE(run.improvements.empty());
    for (std::size_t i = 1; i < run.improvements.size(); ++i) {
      CHECK(run.improvements[i].ratio < run.improvements[i - 1].ratio);
      CHECK(run.improvements[i].num_evaluations > run.improvements[i - 1].num_evaluations);
      CHECK(run.improvements[i].gpu_s >= run.improvements[i - 1].gpu_s);
    }
  }
}

TEST_CASE("replay: the winners of a token count are looked at first at the next") {
  const Recording read = recording({16, 17});
  const auto runs = replay(read, "grid", 0);
  // 17 tokens are nearly 16: the reference, then the best of 16.
  CHECK(runs[1].reached(0.02) != nullptr);
  CHECK(runs[1].reached(0.02)->num_evaluations <= 6);
}

TEST_CASE("replay: guided is within 1 % on nearly all entries for a part of the looks") {
  const Recording read = recording();
  const std::vector<std::string> names{"guided", "random", "differential_evolution"};
  const JournalReplay replay = replay_all(read, names, 5);
  const EndStats guided = end_stats(replay.strategies[0]);
  CHECK(guided.within_1pct >= 0.9);
  CHECK(guided.within_5pct >= guided.within_1pct);
  CHECK(guided.share < 0.3);
  const ReachStats reach = reach_stats(replay.strategies[0], 0.01);
  CHECK(reach.median_table_gpu_s < reach_stats(replay.strategies[1], 0.01).median_table_gpu_s);
}

TEST_CASE("replay: the same seed gives the same runs, on however many threads") {
  const Recording read = recording({1024});
  const std::vector<std::string> names{"guided"};
  const JournalReplay both = replay_all(read, names, 3);
  for (std::uint64_t seed = 0; seed < 3; ++seed) {
    const auto alone = replay(read, "guided", seed);
    for (std::size_t i = 0; i < alone.size(); ++i) {
      CHECK(alone[i].num_evaluations == both.strategies[0].runs[seed][i].num_evaluations);
      CHECK(alone[i].gpu_s == both.strategies[0].runs[seed][i].gpu_s);
    }
  }
}

TEST_CASE("replay summary: what never got there counts as infinite, and goes on for the table") {
  StrategyReplay replay{"guided", {}};
  replay.runs.push_back({entry_run({{1, 1, 1.2}, {4, 2, 1.04}, {10, 5, 1.005}}),
                         entry_run({{1, 1, 1.3}, {6, 3, 1.03}})});
  replay.runs[0][1].later = {{25, 11, 1.02}, {60, 30, 1.0}};
  replay.runs.push_back({entry_run({{1, 1, 1.0}}), entry_run({{2, 1.5, 1.0}})});
  const ReachStats to_1 = reach_stats(replay, 0.01);
  CHECK(to_1.share == doctest::Approx(0.75));
  CHECK(to_1.median_evaluations == doctest::Approx(2));  // of 1, 2, 10, never
  CHECK(std::isinf(to_1.p90_evaluations));
  CHECK(to_1.median_table_gpu_s == doctest::Approx(2.5));
  CHECK(to_1.p90_table_gpu_s == doctest::Approx(5 + 30));
  const ReachStats to_5 = reach_stats(replay, 0.05);
  CHECK(to_5.share == doctest::Approx(1));
  CHECK(to_5.p90_evaluations == doctest::Approx(6));
  CHECK(to_5.p90_share == doctest::Approx(0.06));
  const EndStats end = end_stats(replay);
  CHECK(end.median_evaluations == doctest::Approx(40));
  CHECK(end.share == doctest::Approx(0.2));
  CHECK(end.within_1pct == doctest::Approx(0.75));

  JournalReplay journal{"grid.jsonl", {{"gpu", "NVIDIA H200"}}, 200, {replay}};
  const auto json = replay_json({journal});
  const auto& strategy = json.at("journals")[0].at("strategies")[0];
  CHECK(strategy.at("to_1pct").at("evaluations").at("p90").is_null());
  CHECK(strategy.at("to_end").at("share_of_grid") == doctest::Approx(0.2));
  CHECK(strategy.at("entries").size() == 2);
  const std::string text = replay_text({journal});
  CHECK(text.find("75.0 %") != std::string::npos);
  const std::string svg = replay_svg({journal});
  CHECK(svg.find("<polyline") != std::string::npos);
  CHECK(svg.find(">guided</text>") != std::string::npos);
  CHECK(svg.ends_with("</svg>\n"));
}

TEST_CASE("t4: a result for each first look, with what the schema requires") {
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/grid.jsonl";
  synthetic::write_journal(path, known_gpu("h200"), problem(), {1024});
  const JournalContents journal = read_journal(path);
  const auto json = t4_json(journal);
  CHECK(json.at("schema_version") == "1.0.0");
  const auto& results = json.at("results");
  REQUIRE(results.size() == journal.trials.size());
  int num_failed = 0;
  for (std::size_t i = 0; i < results.size(); ++i) {
    const auto& result = results[i];
    const Trial& trial = journal.trials[i].trial;
    CHECK(result.at("configuration").at("BLOCK_SIZE_M") ==
          trial.plan.steps[0].point.at("BLOCK_SIZE_M"));
    CHECK(result.at("configuration").at("num_tokens") == 1024);
    CHECK(result.at("times").is_object());
    if (trial.status == TrialStatus::ok) {
      CHECK(result.at("invalidity") == "correct");
      CHECK(result.at("correctness") == 1);
      CHECK(result.at("measurements")[0].at("name") == "time");
      CHECK(result.at("measurements")[0].at("value") ==
            doctest::Approx(trial.timing.median_us / 1000));
    } else {
      ++num_failed;
      CHECK(result.at("invalidity") == "constraints");
      CHECK(result.at("correctness") == 0);
    }
  }
  CHECK(num_failed > 0);
}
