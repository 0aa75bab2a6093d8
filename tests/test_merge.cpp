// Tables and journals of shards, joined.
#include <doctest/doctest.h>

#include <algorithm>
#include <fstream>

#include "core/error.hpp"
#include "core/text.hpp"
#include "table/merge.hpp"
#include "tests/report_trials.hpp"
#include "tests/table_fixture.hpp"
#include "tune/merge_journals.hpp"

using namespace moetune;
using Json = nlohmann::ordered_json;

namespace {

std::string text(const Table& table) {
  return Json(table).dump();
}

// Entries as tests want them: fast, measured with care.
Table table_with(const std::vector<std::int64_t>& token_counts, double median_us) {
  Table table = sample_table();
  table.entries.clear();
  for (const std::int64_t count : token_counts)
    table.entries[count] = entry_at(table.identity, count, median_us);
  return table;
}

JournalTrial known(Trial trial, int round = 0, double elapsed_s = 1) {
  return {std::move(trial), round, elapsed_s};
}

NamedJournal journal(const std::string& path, const std::vector<JournalTrial>& trials) {
  JournalContents contents;
  contents.header = {{"record", "header"},
                     {"version", kJournalVersion},
                     {"identity", {{"gpu", "NVIDIA H200"}, {"seed", 0}}},
                     {"created", "2026-01-01T00:00:0" + path + "Z"},
                     {"command", "moe-tune search"}};
  contents.trials = trials;
  contents.others = {{{"record", "run"}, {"wall_s", path}}};
  return {path, contents};
}

// As read back from a file.
JournalContents read_back(const std::string& content) {
  const TemporaryFolder directory;
  std::ofstream(directory.file("journal.jsonl")) << content;
  return read_journal(directory.file("journal.jsonl"));
}

}  // namespace

TEST_CASE("merge: tables of shards give one table, whatever their order") {
  std::vector<Table> shards{table_with({1, 8}, 20), table_with({8, 64}, 19), table_with({128}, 30)};
  shards[1].created = "2026-02-01T00:00:00Z";
  shards[1].command = "moe-tune search --tokens 8,64";
  const Table merged = merge_tables(shards);
  CHECK(merged.entries.size() == 4);
  CHECK(merged.entries.at(8).timing.median_us == 19);
  CHECK(merged.command == shards[1].command);
  CHECK(merged.complete());
  const std::vector<std::size_t> first{0, 1, 2};
  std::vector<std::size_t> order = first;
  while (std::next_permutation(order.begin(), order.end())) {
    const std::vector<Table> shuffled{shards[order[0]], shards[order[1]], shards[order[2]]};
    CHECK(text(merge_tables(shuffled)) == text(merged));
  }
  // Once more changes nothing.
  const std::vector<Table> again{merged, shards[0]};
  CHECK(text(merge_tables(again)) == text(merged));
}

TEST_CASE(
    "merge: a measured entry comes before a faster one that was not, a full look before a brief "
    "one") {
  const TableEntry measured = entry_at(sample_table().identity, 8, 20);
  TableEntry predicted = measured;
  predicted.source = Source::predicted;
  predicted.timing.median_us = 5;
  CHECK(is_better_entry(measured, predicted));
  CHECK_FALSE(is_better_entry(predicted, measured));
  TableEntry brief = measured;
  brief.timing.num_samples = 3;
  brief.timing.median_us = 5;
  CHECK(is_better_entry(measured, brief));
  TableEntry faster = measured;
  faster.timing.median_us = 19;
  CHECK(is_better_entry(faster, measured));
  CHECK_FALSE(is_better_entry(measured, measured));
  TableEntry small = measured;
  small.timing.median_us *= 2;
  small.workspace_bytes = 100;
  TableEntry large = measured;
  large.workspace_bytes = 200;
  CHECK(is_better_entry(small, large, Objective::memory));
  CHECK_FALSE(is_better_entry(small, large));
}

TEST_CASE("merge: variants that no entry uses may differ, the newest table's are taken") {
  Table a = table_with({1}, 20), b = table_with({8}, 20), c = table_with({64}, 20);
  b.created = "2026-02-01T09:30:00Z";
  b.identity.kernels.variants["hopper"] = "newer";
  b.identity.kernels.small_kernels = "newer";
  c.created = "2025-02-01T09:30:00Z";
  for (Step& step : c.entries.at(64).plan.steps) step.variant = "decode";
  c.identity.kernels.variants = {{"decode", "dddd"}};
  CHECK(why_not_mergeable(a, b).empty());
  CHECK(why_not_mergeable(b, c).empty());
  const std::vector<Table> forth{a, b, c}, back{c, b, a};
  const std::map<std::string, std::string> wanted{
      {"decode", "dddd"}, {"hopper", "newer"}, {"portable", "0123abcd"}};
  CHECK(merge_tables(forth).identity.kernels.variants == wanted);
  CHECK(merge_tables(forth).identity.kernels.small_kernels == "newer");
  CHECK(text(merge_tables(forth)) == text(merge_tables(back)));
  for (Step& step : a.entries.at(1).plan.steps) step.variant = "hopper";
  CHECK(why_not_mergeable(a, b) == "kernels of hopper: 89abcdef and newer");
}

TEST_CASE("merge: what an interrupted shard misses is missing unless others have it") {
  std::vector<Table> shards{table_with({1, 8}, 20), table_with({8}, 19)};
  shards[1].missing = {1};
  CHECK(merge_tables(shards).complete());
  shards[1].missing = {1, 64};
  const std::set<std::int64_t> left{64};
  CHECK(merge_tables(shards).missing == left);
}

TEST_CASE("merge: tables of different kernels, GPUs or routings do not belong together") {
  const Table table = sample_table();
  Table other = table;
  other.identity.driver = "590.1";
  other.identity.shape.model = "another name";
  CHECK(why_not_mergeable(table, other).empty());
  other.identity.kernels.variants["portable"] = "4567";
  CHECK(why_not_mergeable(table, other) == "kernels of portable: 0123abcd and 4567");
  other = table;
  other.identity.shape.top_k = 4;
  CHECK(why_not_mergeable(table, other).starts_with("shape: E=8 K=2 "));
  other = table;
  other.routing = parse_routing("zipf:1.2");
  CHECK(why_not_mergeable(table, other) == "routing: uniform and zipf:1.2");
}

TEST_CASE("merge: journals keep every trial once, whatever their order") {
  const Trial fast = timed(Stage::gemm1, 1, point(16), 10);
  const Trial slow = timed(Stage::gemm1, 1, point(16), 11);
  const Trial other = timed(Stage::gemm2, 1, point(32), 12);
  const NamedJournal a = journal("1", {known(fast), known(other)});
  const NamedJournal b = journal("2", {known(slow), known(fast, 1), known(other)});
  const NamedJournal c = journal("3", {known(timed(Stage::gemm1, 8, point(16), 9))});
  const std::vector<NamedJournal> forth{a, b, c}, back{c, b, a};
  const MergedJournal merged = merge_journals(forth);
  CHECK(merged.text == merge_journals(back).text);
  CHECK(merged.num_trials == 4);
  CHECK(merged.num_conflicts == 1);

  const JournalContents read = read_back(merged.text);
  CHECK(read.warnings.empty());
  REQUIRE(read.trials.size() == 4);
  CHECK(read.trials[0].trial.timing.median_us == 10);
  CHECK(read.trials[1].round == 1);
  CHECK(read.others.size() == 3);
  CHECK(read.header.at("created") == "2026-01-01T00:00:01Z");
  // What is there already takes part in a later merge.
  const std::vector<NamedJournal> again{{"merged", read}, b};
  CHECK(merge_journals(again).text == merged.text);
}

TEST_CASE("merge: a wrong result is kept before a good time, a good time before a failure") {
  const Trial good = timed(Stage::gemm1, 1, point(16), 10);
  Trial wrong = good;
  wrong.status = TrialStatus::wrong_result;
  Trial hung = good;
  hung.status = TrialStatus::timed_out;
  const auto kept = [&](const Trial& one, const Trial& two) {
    const std::vector<NamedJournal> both{journal("1", {known(one)}), journal("2", {known(two)})};
    return read_back(merge_journals(both).text).trials.at(0).trial.status;
  };
  CHECK(kept(good, wrong) == TrialStatus::wrong_result);
  CHECK(kept(hung, good) == TrialStatus::ok);
  CHECK(kept(hung, wrong) == TrialStatus::wrong_result);
}

TEST_CASE("merge: journals of different searches are an error that names the difference") {
  NamedJournal a = journal("1", {});
  NamedJournal b = journal("2", {});
  b.contents.header["identity"]["seed"] = 7;
  const std::vector<NamedJournal> both{a, b};
  CHECK_THROWS_WITH_AS(merge_journals(both), doctest::Contains("seed is 0 and 7"), Error);
}
