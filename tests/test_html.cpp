// A report's numbers, before any browser: costs, heat maps, convergence, and what the text says.
#include <doctest/doctest.h>

#include "core/error.hpp"
#include "report/html_page.hpp"
#include "report/html_views.hpp"
#include "report/markdown.hpp"
#include "report/pareto.hpp"
#include "tests/report_trials.hpp"
#include "tune/journal.hpp"

using namespace moetune;
using Json = nlohmann::ordered_json;

namespace {

const std::string kJournal = MOETUNE_SOURCE_DIR "/tests/data/journals/qwen3-30b-a3b.jsonl";

SearchRecord sample_record() {
  JournalContents contents = read_journal(kJournal);
  SearchRecord record{contents.header, {}, contents.others};
  for (const JournalTrial& known : contents.trials)
    record.trials.push_back({known.trial, known.elapsed_s});
  return record;
}

Point pair(int m, int n) {
  return Point({{"BLOCK_SIZE_M", m}, {"BLOCK_SIZE_N", n}});
}

TimedTrial look(int m, int n, double time_us, double elapsed_s, bool brief = false) {
  TimedTrial result{timed(Stage::gemm1, 8, pair(m, n), time_us), elapsed_s};
  result.trial.screened_out = brief;
  return result;
}

// Best 10 us at 32, 64.
std::vector<TimedTrial> four_looks() {
  return {look(16, 32, 20, 1), look(16, 64, 12, 2), look(32, 64, 10, 3), look(64, 64, 30, 4, true)};
}

bool holds(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("html: a parameter's cost is what its best point loses when it is fixed") {
  const std::vector<TimedTrial> trials = four_looks();
  const auto groups = stage_looks(trials);
  REQUIRE(groups.size() == 1);
  CHECK(groups[0].best_us == 10);
  const auto costs = parameter_costs(groups[0]);
  REQUIRE(costs.size() == 2);
  CHECK(costs[0].name == "BLOCK_SIZE_M");
  CHECK(costs[0].range_percent == doctest::Approx(200));
  REQUIRE(costs[0].values.size() == 3);
  CHECK(costs[0].values[0].cost_percent == doctest::Approx(20));
  CHECK(costs[0].values[1].cost_percent == 0);
  CHECK_FALSE(costs[0].values[1].brief);
  CHECK(costs[0].values[2].brief);
  CHECK(costs[1].range_percent == doctest::Approx(100));
}

TEST_CASE("html: a heat map's cell is the best of its pair, and empty where none was timed") {
  const std::vector<TimedTrial> trials = four_looks();
  const HeatMap map = heat_map(stage_looks(trials)[0], "BLOCK_SIZE_M", "BLOCK_SIZE_N");
  CHECK(map.rows == std::vector{16, 32, 64});
  CHECK(map.columns == std::vector{32, 64});
  CHECK(map.cells[0][0]->cost_percent == doctest::Approx(100));
  CHECK(map.cells[0][1]->cost_percent == doctest::Approx(20));
  CHECK_FALSE(map.cells[1][0]);
  CHECK(map.cells[1][1]->cost_percent == 0);
  CHECK(map.cells[2][1]->brief);
}

TEST_CASE("html: convergence keeps each improvement and the end") {
  const std::vector<TimedTrial> trials = four_looks();
  const auto points = convergence(stage_looks(trials)[0]);
  REQUIRE(points.size() == 4);
  CHECK(points[0].best_us == 20);
  CHECK(points[0].elapsed_s == 0);
  CHECK(points[2].best_us == 10);
  CHECK(points[3].best_us == 10);
  CHECK(points[3].num_looks == 4);
  CHECK(points[3].elapsed_s == 3);
}

TEST_CASE("html: looks of points that failed or were all stopped early make no group") {
  std::vector<TimedTrial> trials{look(16, 32, 20, 1, true)};
  trials.push_back({bad(TrialStatus::timed_out, pair(16, 64), "", "hung"), 2});
  CHECK(stage_looks(trials).empty());
}

TEST_CASE("html: a journal's entries come with the floor that the GPU's rates set") {
  const ReportData data = gather(sample_record(), std::nullopt);
  REQUIRE(data.layers.size() == 3);
  CHECK(data.identity.gpu == "NVIDIA H200");
  CHECK(data.complete);
  CHECK(data.num_trials == 16921);
  CHECK(data.rejected.at("tile_order") == 1020600);
  for (const auto& [num_tokens, point] : data.layers) {
    CAPTURE(num_tokens);
    CHECK(point.floor_us > 0);
    CHECK(point.floor_us < point.entry.timing.median_us);
    CHECK(point.entry.speedup ==
          doctest::Approx(point.entry.reference_us / point.entry.timing.median_us));
  }
  // 8 experts of 3 matrices of 2048 x 768 bf16 and little else, at the H200's 4650 GB/s.
  CHECK(data.layers.at(1).floor_us ==
        doctest::Approx(8 * 3 * 2048 * 768 * 2 / 4650e3).epsilon(0.01));
}

TEST_CASE("html: a table of another search is refused") {
  const SearchRecord record = sample_record();
  Table table;
  table.identity = gather(record, std::nullopt).identity;
  CHECK_NOTHROW(gather(record, table));
  table.identity.kernels.variants["portable"] = "other";
  CHECK_NOTHROW(gather(record, table));  // nothing in it is of that variant
  table.entries[1].plan.steps = {{"gemm1", "portable", {}}};
  CHECK_THROWS_WITH_AS(gather(record, table), doctest::Contains("hash of portable is other"),
                       Error);
}

TEST_CASE("html: a header that lacks something is an error, not a crash") {
  SearchRecord record = sample_record();
  record.header["identity"].erase("top_k");
  CHECK_THROWS_WITH_AS(gather(record, std::nullopt), doctest::Contains("top_k"), Error);
}

TEST_CASE("html: nothing in the data ends a script or begins markup") {
  SearchRecord record = sample_record();
  record.header["command"] = "moe-tune </script><b>@DATA@</b>";
  record.header["identity"]["model"] = "<img>";
  record.trials.push_back({bad(TrialStatus::launch_failed, point(16), "", "a </script> b"), 1});
  const std::string page = html_page(gather(record, std::nullopt));
  CHECK_FALSE(holds(page, "</script><b>"));
  CHECK_FALSE(holds(page, "<img>"));
  CHECK(holds(page, "moe-tune &lt;/script&gt;&lt;b&gt;@DATA@&lt;/b&gt;"));
  CHECK(holds(page, "1 launch_failed: a &lt;/script&gt; b"));
}

TEST_CASE("html: what was not measured says so in the page and in Markdown") {
  SearchRecord record = sample_record();
  CHECK_FALSE(holds(markdown(gather(record, std::nullopt)), "predicted"));
  for (Json& other : record.others)
    if (other.at("record") == "entry") other["source"] = "predicted";
  const ReportData data = gather(record, std::nullopt);
  const std::string page = html_page(data);
  CHECK(holds(page, "times are <b>predicted</b>"));
  CHECK(holds(page, "<span class=\"source predicted\">predicted</span>"));
  CHECK_FALSE(holds(page, "<span class=\"source measured\">"));
  const std::string text = markdown(data);
  CHECK(holds(text, "predicted | "));
  CHECK(holds(text, "not a measurement"));
}

TEST_CASE("pareto: a layer stands where none is better in both, by more than noise") {
  const auto layer = [](int m, double time_us, double error, double quantisation_err = 0) {
    TimedTrial timed_layer{timed(Stage::layer, 8, pair(m, 32), time_us), 1};
    timed_layer.trial.rel_err = error;
    timed_layer.trial.quantisation_err = quantisation_err;
    return timed_layer;
  };
  std::vector<TimedTrial> trials{
      layer(16, 10, 0.02, 0.04), layer(16, 12, 0.02, 0.04),  // two rounds: 11 us
      layer(32, 20, 0.003),      layer(48, 21, 0.00299),     // no more than noise
      layer(64, 30, 0.003),      layer(128, 40, 0.002),     layer(256, 15, 0)};
  trials.push_back({timed(Stage::gemm1, 8, pair(1, 1), 1), 1});
  trials.push_back({bad(TrialStatus::wrong_result, pair(2, 2), "", "off"), 1});
  const auto fronts = pareto_fronts(trials, Objective::time, Objective::error);
  REQUIRE(fronts.size() == 1);
  CHECK(fronts[0].num_tokens == 8);
  REQUIRE(fronts[0].points.size() == 3);
  CHECK(fronts[0].points[0].first == 11);
  CHECK(fronts[0].points[0].second == 0.04);
  CHECK(fronts[0].points[1].plan.steps[0].point.at("BLOCK_SIZE_M") == 32);
  CHECK(fronts[0].points[2].first == 40);
  CHECK(pareto_fronts(trials, Objective::time, Objective::energy).empty());
  const auto turned = pareto_fronts(trials, Objective::error, Objective::time);
  REQUIRE(turned[0].points.size() == 3);
  for (std::size_t i = 0; i < 3; ++i)
    CHECK(turned[0].points[i].plan == fronts[0].points[2 - i].plan);

  ReportData data = gather(sample_record(), std::nullopt);
  data.trials = trials;
  CHECK(holds(markdown(data), "#### Trade-off of time and error"));
  CHECK(holds(markdown(data), "| 8 | 11.0 | 0.04000 | "));
  CHECK(holds(html_page(data), "<h2>Trade-off of time and error</h2>"));
  CHECK(holds(html_page(data), "<td>8</td><td>20.0</td><td>0.00300</td>"));
  data.pareto = {Objective::energy, Objective::memory};
  CHECK_FALSE(holds(markdown(data), "Trade-off"));
  CHECK_FALSE(holds(html_page(data), "Trade-off"));
}

TEST_CASE("pareto: the two objectives are named by a comma between them") {
  CHECK(parse_objectives("energy,memory") == std::pair{Objective::energy, Objective::memory});
  for (const char* text : {"time", "time,time", "time,speed", "", "a,b,c"}) {
    CAPTURE(text);
    CHECK_THROWS_AS(parse_objectives(text), Error);
  }
}

TEST_CASE("markdown: a row for each token count") {
  const std::string text = markdown(gather(sample_record(), std::nullopt));
  CHECK(holds(text, "### qwen3-30b-a3b bf16 on NVIDIA H200\n"));
  CHECK(holds(text, "| tokens | layer us | reference us | floor us | speedup | source | tie |\n"));
  CHECK(holds(text, "\n| 1024 | "));
  CHECK(holds(text, " | measured | "));
}

TEST_CASE("html: a search that found nothing still has a page") {
  SearchRecord record = sample_record();
  record.trials.clear();
  record.others.clear();
  const ReportData data = gather(record, std::nullopt);
  CHECK(data.layers.empty());
  CHECK(holds(html_page(data), "token counts; the search is not complete"));
  CHECK(holds(markdown(data), "No entry was found."));
}
