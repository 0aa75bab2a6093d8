// The optimisation journey without a GPU: its reports, its kernels' compilation, and the command.
#include <doctest/doctest.h>
#include <fmt/format.h>
#include <sys/wait.h>

#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include "bench/journey.hpp"
#include "bench/measure_call.hpp"
#include "core/error.hpp"
#include "core/text.hpp"
#include "report/journey_report.hpp"
#include "report/row_record.hpp"
#include "tests/bench_command.hpp"
#include "tests/table_fixture.hpp"

namespace moetune {
namespace {

using Json = nlohmann::ordered_json;

bool holds(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

BenchRun sample_run() {
  BenchRun run;
  run.gpu = known_gpu("h200");
  run.gpu.offline = false;
  run.gpu.driver = "580.1";
  run.commit = "abc1234";
  run.command = "moe-tune bench --journey";
  run.date = "2026-01-31T09:30:00Z";
  return run;
}

// Level i takes 1000 / (i + 1) us; level 4 was skipped.
JourneyRow sample_row(std::int64_t num_tokens) {
  JourneyRow row;
  row.model = "mixtral-8x7b";
  row.problem = {{"mixtral-8x7b", 8, 2, 4096, 14336}, Dtype::bf16, num_tokens, {}, 0};
  row.lookup = "exact";
  row.plan = reference_plan(known_gpu("h200"), row.problem);
  for (int i = 0; i < kNumLevels; ++i) {
    JourneyLevel& level = row.levels.at(static_cast<std::size_t>(i));
    const double time_us = 1000.0 / (i + 1);
    level.timing = {time_us, time_us * 0.9, time_us * 1.1, 20, 0};
    level.rel_err = 0.003;
    level.graph = i >= 5;
    level.calls_a_sample = 8;
  }
  row.levels[4] = {};
  row.levels[4].status = LevelStatus::skipped;
  row.levels[4].reason = "cannot load cuBLAS";
  return row;
}

}  // namespace

TEST_CASE("journey: speedups are over level 0, changes from the last level that has a time") {
  const JourneyRow row = sample_row(8);
  CHECK(speedup_over_naive(row, 0) == doctest::Approx(1));
  CHECK(speedup_over_naive(row, 6) == doctest::Approx(7));
  CHECK(change_from_before(row, 0) == 0);
  CHECK(change_from_before(row, 3) == doctest::Approx(4.0 / 3));
  CHECK(speedup_over_naive(row, 4) == 0);
  CHECK(change_from_before(row, 4) == 0);
  CHECK(change_from_before(row, 5) == doctest::Approx(6.0 / 4));
}

TEST_CASE("journey: the text names every level, how it was timed, and why one is missing") {
  const std::vector<JourneyRow> rows = {sample_row(8)};
  const std::string text = journey_text(sample_run(), rows);
  for (int i = 0; i < kNumLevels; ++i) CHECK(holds(text, std::string(level_name(i))));
  CHECK(holds(text, "7.00x"));
  CHECK(holds(text, "20 x 8 stream"));
  CHECK(holds(text, "20 x 8 graph"));
  CHECK(holds(text, "level 4 skipped: cannot load cuBLAS"));
}

TEST_CASE("journey: JSON has null for what was not timed") {
  const Json json = journey_json(sample_run(), std::vector<JourneyRow>{sample_row(8)});
  const Json& levels = json.at("rows").at(0).at("levels");
  REQUIRE(levels.size() == 7);
  CHECK(levels[0].at("median_us") == 1000.0);
  CHECK(levels[6].at("speedup").get<double>() == doctest::Approx(7));
  CHECK(levels[4].at("median_us").is_null());
  CHECK(levels[4].at("speedup").is_null());
  CHECK(levels[4].at("status") == "skipped");
}

TEST_CASE("journey: the figure has a line each row and a mark each level that was timed") {
  const std::vector<JourneyRow> rows = {sample_row(8), sample_row(64)};
  const std::string svg = journey_svg(sample_run(), rows);
  CHECK(svg.starts_with("<svg"));
  CHECK(svg.ends_with("</svg>\n"));
  const auto count = [&](const std::string& part) {
    std::size_t found = 0;
    for (auto at = svg.find(part); at != std::string::npos; at = svg.find(part, at + 1)) ++found;
    return found;
  };
  CHECK(count("<polyline") == 2);
  CHECK(count("<circle") == 12);
  CHECK(holds(svg, "mixtral-8x7b, 64 tokens"));
  CHECK_FALSE(holds(svg, "nan"));
}

TEST_CASE("journey record: a row takes the place of the same layer's, others stay") {
  const TemporaryFolder directory;
  const std::string path = directory.file("journey.json");
  const BenchRun run = sample_run();
  const auto update = [&](const JourneyRow& row) {
    update_rows(path, run, journey_row_json(run, row), {"model", "dtype", "num_tokens", "routing"});
  };
  update(sample_row(8));
  update(sample_row(64));
  JourneyRow again = sample_row(8);
  again.levels[0].timing.median_us = 2000;
  update(again);
  const Json record = parse_json(read_file(path), path);
  REQUIRE(record.at("rows").size() == 2);
  CHECK(record.at("rows")[0].at("levels")[0].at("median_us") == 2000.0);
  CHECK(record.at("gpu") == "NVIDIA H200");
  CHECK_THROWS_WITH_AS(read_rows(path, run, "serving"),
                       (path + " is no record of kind 'serving'; give another --out").c_str(),
                       Error);
}

TEST_CASE("journey: slow levels get fewer samples, then single calls, but always one") {
  const StreamSamples fast = plan_samples(0.001, 10, 8);
  CHECK(fast.calls == 8);
  CHECK(fast.num_samples == 20);
  const StreamSamples slow = plan_samples(0.3, 10, 8);
  CHECK(slow.calls == 8);
  CHECK(slow.num_samples == 4);
  const StreamSamples slower = plan_samples(1, 10, 8);
  CHECK(slower.calls == 1);
  CHECK(slower.num_samples == 10);
  CHECK(plan_samples(30, 10, 8).num_samples == 1);
}

TEST_CASE("journey: its kernels compile for every architecture and are no part of a table's hash") {
  for (const EmbeddedFile& file : embedded_kernels()) CHECK_FALSE(file.name.starts_with("journey"));
  for (const char* arch : {"sm_80", "sm_89", "sm_90a", "sm_100a", "sm_120a"}) {
    CAPTURE(arch);
    const Cubin cubin = compile(journey_kernels(), arch, embedded_journey());
    CHECK(cubin.error == "");
    for (const CompiledKernel& kernel : cubin.kernels) CHECK(kernel.resources.stack_bytes == 0);
    if (std::string(arch) == "sm_80") continue;  // it has no e4m3
    CHECK(compile(quantise_kernels(), arch, embedded_journey()).error == "");
  }
}

TEST_CASE("journey command: it needs a GPU and bf16, and says so") {
  const auto run = [](const std::string& arguments) {
    return run_bench("--journey --tokens 8", arguments);
  };
  const auto [offline, why] = run("--device offline:h200");
  CHECK(offline == 3);
  CHECK(holds(why, "--journey only measures: it needs a GPU"));
  const auto [fp8, reason] = run("--dtype fp8_block");
  CHECK(fp8 == 2);
  CHECK(holds(reason, "levels 0 to 5 are bf16"));
  const int alone = std::system(
      fmt::format("{} bench --figure a.svg --shape 8,2,512,256 2>/dev/null", MOETUNE_PROGRAM)
          .c_str());
  CHECK((WIFEXITED(alone) && WEXITSTATUS(alone) == 2));
}

}  // namespace moetune
