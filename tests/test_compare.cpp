// Whether two tunings agree, and `moe-tune compare` as a user meets it.
#include <doctest/doctest.h>
#include <fmt/format.h>
#include <sys/wait.h>

#include <cstdlib>

#include "core/error.hpp"
#include "core/text.hpp"
#include "tests/table_fixture.hpp"
#include "tune/compare_tables.hpp"

using namespace moetune;
using Json = nlohmann::ordered_json;

namespace {

// `num` entries of 100 us, p10 99 and p90 102.
Table table_of(int num) {
  Table table = sample_table();
  table.entries.clear();
  for (int i = 1; i <= num; ++i) table.entries[i] = entry_at(table.identity, i, 100);
  return table;
}

// Another plan, that takes this long.
void change(Table& table, std::int64_t num_tokens, double median_us) {
  TableEntry& entry = table.entries.at(num_tokens);
  entry = entry_at(table.identity, num_tokens, median_us);
  entry.plan.steps[0].point.set("NUM_STAGES", 3);
}

Agreement agreement(const Table& a, const Table& b, std::int64_t num_tokens = 1) {
  const TableComparison there = compare_tables(a, b);
  const TableComparison back = compare_tables(b, a);
  for (std::size_t i = 0; i < there.entries.size(); ++i) {
    if (there.entries[i].num_tokens != num_tokens) continue;
    CHECK(there.entries[i].agreement == back.entries[i].agreement);
    return there.entries[i].agreement;
  }
  FAIL("no such entry");
  return Agreement::missing;
}

bool holds(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

struct Result {
  int code;
  std::string out, err;
};

Result run(const std::string& arguments) {
  const TemporaryFolder directory;
  const std::string out = directory.file("out"), err = directory.file("err");
  const int status =
      std::system(fmt::format("{} {} >'{}' 2>'{}'", MOETUNE_PROGRAM, arguments, out, err).c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read_file(out), read_file(err)};
}

}  // namespace

TEST_CASE("compare: the same plan agrees, whatever its time") {
  const Table a = table_of(1);
  Table b = a;
  CHECK(agreement(a, b) == Agreement::same);
  b.entries.at(1).timing.median_us = 150;
  CHECK(agreement(a, b) == Agreement::same);
}

TEST_CASE("compare: other plans agree where their times are within the tie band") {
  const Table a = table_of(1);
  struct Case {
    double median_us;
    Agreement agreement;
  };
  // Within 1 %; within 2 % and inside each other's p10 to p90; beyond.
  for (const auto& [median_us, wanted] :
       {Case{100.9, Agreement::tie}, Case{99.2, Agreement::tie}, Case{102.1, Agreement::different},
        Case{97, Agreement::different}}) {
    CAPTURE(median_us);
    Table b = a;
    change(b, 1, median_us);
    CHECK(agreement(a, b) == wanted);
  }
  Table b = a;
  change(b, 1, 101.5);
  b.entries.at(1).timing.p10_us = 99.5;
  CHECK(agreement(a, b) == Agreement::tie);
  b.entries.at(1).timing.p10_us = 101.4;  // as close, but without doubt slower
  CHECK(agreement(a, b) == Agreement::different);
}

TEST_CASE("compare: for another objective than time what it says must agree, too") {
  Table a = table_of(1);
  a.objective = Objective::memory;
  a.entries.at(1).workspace_bytes = 1000;
  Table b = a;
  change(b, 1, 100);
  CHECK(agreement(a, b) == Agreement::different);  // not known
  b.entries.at(1).workspace_bytes = 1005;
  CHECK(agreement(a, b) == Agreement::tie);
  b.entries.at(1).workspace_bytes = 1100;
  CHECK(agreement(a, b) == Agreement::different);
}

TEST_CASE("compare: the share counts what only one table has as disagreement") {
  const Table a = table_of(20);
  Table b = a;
  CHECK(compare_tables(a, b).share() == 1);
  change(b, 3, 100);
  change(b, 4, 120);
  TableComparison comparison = compare_tables(a, b);
  CHECK(comparison.count(Agreement::same) == 18);
  CHECK(comparison.count(Agreement::tie) == 1);
  CHECK(comparison.share() == doctest::Approx(0.95));
  CHECK(comparison.entries.at(3).ratio() == doctest::Approx(1.2));
  b.entries.erase(7);
  comparison = compare_tables(a, b);
  CHECK(comparison.count(Agreement::missing) == 1);
  CHECK(comparison.entries.size() == 20);
  CHECK(comparison.share() == doctest::Approx(0.9));
  CHECK(agreement(a, b, 7) == Agreement::missing);
  Table none = a;
  none.entries.clear();
  CHECK(compare_tables(none, none).share() == 0);
}

TEST_CASE(
    "compare: a plan that both tables declare as no worse is a tie, whatever the clocks did") {
  Table a = table_of(4);
  Table b = a;
  for (int i = 1; i <= 4; ++i) change(b, i, 110);
  a.entries.at(1).ties = {"another", b.entries.at(1).plan.key()};  // one's winner
  a.entries.at(2).ties = {"another", "a third"};                   // neither's winner
  b.entries.at(2).ties = {"a third"};
  a.entries.at(3).ties = {"another"};
  b.entries.at(3).ties = {"a third"};
  CHECK(agreement(a, b, 1) == Agreement::tie);
  CHECK(agreement(a, b, 2) == Agreement::tie);
  CHECK(agreement(a, b, 3) == Agreement::different);
  CHECK(agreement(a, b, 4) == Agreement::different);
  change(b, 4, 100);
  const Json json = comparison_json(compare_tables(a, b));
  CHECK(json.at("num_tie") == 3);
  CHECK(json.at("num_declared") == 2);
  CHECK(json.at("entries").at(0).at("declared") == true);
  CHECK(json.at("entries").at(3).at("declared") == false);
}

TEST_CASE("compare: tables of different GPUs, kernels or objectives are not compared") {
  const Table a = table_of(1);
  Table b = a;
  b.identity.kernels.variants["portable"] = "other";
  CHECK_THROWS_WITH_AS(compare_tables(a, b),
                       doctest::Contains("kernels of portable: 0123abcd and other"), Error);
  b = a;
  b.objective = Objective::memory;
  CHECK_THROWS_WITH_AS(compare_tables(a, b), doctest::Contains("objective: time and memory"),
                       Error);
}

TEST_CASE("compare command: the exit code says whether 95 % agree") {
  const TemporaryFolder directory;
  const Table a = table_of(20);
  Table b = a;
  change(b, 3, 120);
  const std::string one = write_table(directory.file("a"), a);
  const std::string two = write_table(directory.file("b"), b);
  const Result good = run(fmt::format("compare '{}' '{}'", one, two));
  CAPTURE(good.err);
  CHECK(good.code == 0);
  CHECK(holds(good.out, "19 of 20 entries agree (95.0 %"));
  CHECK(holds(good.out, "1.200  DIFFERENT: portable M64"));
  b.entries.erase(5);
  std::filesystem::remove(two);
  write_table(directory.file("b"), b);
  const Result bad = run(fmt::format("compare --json '{}' '{}'", one, two));
  CHECK(bad.code == 1);
  const Json json = Json::parse(bad.out);
  CHECK(json.at("share") == doctest::Approx(0.9));
  CHECK(json.at("reproducible") == false);
  CHECK(json.at("entries").at(4).at("agreement") == "missing");
  CHECK(json.at("entries").at(4).at("second_us").is_null());

  const Result none = run(fmt::format("compare '{}' '{}/none.json'", one, directory.path()));
  CHECK(none.code == 2);
  CHECK(holds(none.err, "none.json"));
  b.identity.nvrtc = "12.8";
  const std::string other = write_table(directory.file("c"), b);
  const Result unfit = run(fmt::format("compare '{}' '{}'", one, other));
  CHECK(unfit.code == 2);
  CHECK(holds(unfit.err, one));
  CHECK(holds(unfit.err, "NVRTC: 13.0 and 12.8"));
}

TEST_CASE("compare command: a shipped table agrees with itself") {
  const std::string table = MOETUNE_SOURCE_DIR
      "/configs/tuned/NVIDIA_H200/E=8,N=14336,H=4096,topk=2,device_name=NVIDIA_H200.json";
  const Result result = run(fmt::format("compare '{}' '{}'", table, table));
  CHECK(result.code == 0);
  CHECK(holds(result.out, "entries agree (100.0 %"));
}
