#include <doctest/doctest.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <vector>

#include "core/error.hpp"
#include "report/validation.hpp"
#include "table/validate.hpp"
#include "tests/table_fixture.hpp"
#include "tune/evaluator.hpp"

namespace moetune {
namespace {

// Gives prepared medians: the entry's plan and the reference point's, for each token count.
class FakeEvaluator : public Evaluator {
 public:
  explicit FakeEvaluator(const Table& table) : gpu_(known_gpu("h200")) {
    for (const auto& [count, entry] : table.entries) {
      us[count] = {entry.timing.median_us};
      plans_[count] = entry.plan;
    }
  }
  const Gpu& gpu() const override { return gpu_; }
  std::string nvrtc_version() const override { return "13.0"; }
  void prefetch(std::span<const Request> requests) override { num_prefetched = requests.size(); }
  Usage usage() const override { return {}; }
  Trial evaluate(const Request& request) override {
    CHECK(request.stage == Stage::layer);
    CHECK(request.thorough);
    CHECK(request.stop_above_us == 0);
    if (request.num_tokens == device_lost_at) throw Error(ErrorKind::device, "the GPU is gone");
    Trial trial;
    trial.num_tokens = request.num_tokens;
    trial.plan = request.plan;
    trial.rel_err = 0.002;
    double median = reference_us;
    if (request.plan == plans_.at(request.num_tokens)) {
      if (wrong.contains(request.num_tokens)) {
        trial.status = TrialStatus::wrong_result;
        trial.reason = "relative error 0.7 is above 0.006";
        return trial;
      }
      std::vector<double>& medians = us.at(request.num_tokens);
      median = medians.front();
      if (medians.size() > 1) medians.erase(medians.begin());
    }
    trial.timing = {median, median * 0.99, median * 1.01, 40, 0};
    trial.source = source;
    return trial;
  }

  std::map<std::int64_t, std::vector<double>> us;  // answers in order, the last one stays
  std::map<std::int64_t, bool> wrong;
  double reference_us = 200;
  std::int64_t device_lost_at = 0;
  Source source = Source::measured;
  std::size_t num_prefetched = 0;

 private:
  Gpu gpu_;
  std::map<std::int64_t, Plan> plans_;
};

// Plans that differ from the reference point, as winners do.
Table tuned_table() {
  Table table = sample_table();
  for (auto& [count, entry] : table.entries)
    for (Step& step : entry.plan.steps) step.point.set("BLOCK_SIZE_N", 128);
  return table;
}

std::string path_of(const Table& table) {
  return "tuned/" + table_file_name(table.identity);
}

Expectation expectation() {
  return {known_gpu("h200"), "13.0", sample_table().identity.kernels, {1, 8, 64}};
}

TableReport static_report(const Table& table, const Expectation& expected = expectation()) {
  return check_table(path_of(table), table, expected);
}

TableReport device_report(const Table& table, Evaluator& evaluator) {
  TableReport report = static_report(table);
  check_on_device(report, table, evaluator, 10);
  return report;
}

// Messages of the failing findings of `check`, joined.
std::string failures(const std::vector<Finding>& findings, Check check) {
  std::string text;
  for (const Finding& finding : findings)
    if (finding.fails && finding.check == check) text += finding.message + "|";
  return text;
}

bool holds(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("validate: a good table has no failing finding") {
  for (const Table& table : {sample_table(), tuned_table()}) {
    const TableReport report = static_report(table);
    CAPTURE(validation_text(report));
    CHECK(report.good());
    CHECK(report.entries.size() == 3);
  }
}

TEST_CASE("validate: an entry falls short when a variant of its own plan has changed") {
  Table table = sample_table();
  for (Step& step : table.entries.at(8).plan.steps) step.variant = "hopper";
  const auto stale_in = [&](const Expectation& expected) {
    std::vector<std::int64_t> stale;
    const TableReport report = static_report(table, expected);
    CHECK(failures(report.findings, Check::identity).empty());
    for (const EntryReport& entry : report.entries)
      if (!failures(entry.findings, Check::identity).empty()) stale.push_back(entry.num_tokens);
    return stale;
  };
  using Counts = std::vector<std::int64_t>;
  CHECK(stale_in(expectation()).empty());
  Expectation other = expectation();
  other.kernels.variants["hopper"] = "ffff";
  CHECK(stale_in(other) == Counts{8});
  CHECK(failures(static_report(table, other).entries.at(1).findings, Check::identity) ==
        "variant hopper has changed since; search again in tuned with --tokens 8|");
  other.kernels.variants.erase("hopper");
  CHECK(stale_in(other) == Counts{8});
  CHECK(holds(failures(static_report(table, other).entries.at(1).findings, Check::identity),
              "this program has no variant hopper; search again"));
  other = expectation();
  other.kernels.variants["portable"] = "ffff";
  CHECK(stale_in(other) == Counts{1, 64});
}

TEST_CASE("validate: what other variants became, or are new, says nothing for an entry") {
  Expectation other = expectation();
  other.kernels.variants["hopper"] = "ffff";
  other.kernels.variants["decode"] = "eeee";
  CHECK(static_report(sample_table(), other).good());
  Table table = sample_table();
  table.identity.kernels.variants["gone"] = "dddd";
  CHECK(static_report(table, other).good());
  CHECK(static_report(table, other).findings.empty());
}

TEST_CASE("validate: an entry of which the table has no hash falls short") {
  Table table = sample_table();
  table.identity.kernels.variants.erase("portable");
  const TableReport report = static_report(table);
  CHECK_FALSE(report.good());
  CHECK(holds(failures(report.entries.at(0).findings, Check::identity),
              "the table has no hash of variant portable"));
}

TEST_CASE("validate: other small kernels are a note only") {
  Expectation other = expectation();
  other.kernels.small_kernels = "ffff";
  const TableReport report = static_report(sample_table(), other);
  CHECK(report.good());
  REQUIRE(report.findings.size() == 1);
  CHECK(report.findings.at(0).check == Check::identity);
  CHECK_FALSE(report.findings.at(0).fails);
  CHECK(holds(validation_text(report), "note, identity: the kernels around the GEMMs"));
}

TEST_CASE("validate: another GPU, compiler or file name is named") {
  const Table table = sample_table();
  Expectation other = expectation();
  other.gpu = known_gpu("a100");
  CHECK(
      holds(failures(static_report(table, other).findings, Check::identity), "GPU 'NVIDIA H200'"));
  CHECK(holds(failures(static_report(table, other).findings, Check::identity), "sm_80"));
  other = expectation();
  other.nvrtc = "12.9";
  CHECK(holds(failures(static_report(table, other).findings, Check::identity), "NVRTC '13.0'"));
  CHECK(holds(failures(check_table("x/best.json", table, expectation()).findings, Check::identity),
              "rename"));
}

TEST_CASE("validate: another driver is a note only") {
  Expectation other = expectation();
  other.gpu->driver = "999.1";
  const TableReport report = static_report(sample_table(), other);
  CHECK(report.good());
  CHECK(report.findings.size() == 1);
}

TEST_CASE("validate: without a GPU any GPU's table is judged by that GPU's limits") {
  Table table = sample_table();
  table.identity.gpu = "NVIDIA GeForce RTX 4090";
  table.identity.arch = "sm_89";
  Expectation any = expectation();
  any.gpu.reset();
  CHECK(static_report(table, any).good());
  for (Step& step : table.entries.at(64).plan.steps) {
    step.point.set("BLOCK_SIZE_K", 128);
    step.point.set("NUM_STAGES", 4);  // 4 x (64 + 64) x 128 x 2 = 131072 bytes of 101376
  }
  const TableReport report = static_report(table, any);
  CHECK(holds(failures(report.entries.at(2).findings, Check::legality), "shared_memory"));
  table.identity.gpu = "NVIDIA Unheard Of";
  CHECK(holds(failures(static_report(table, any).entries.at(2).findings, Check::legality),
              "shared_memory"));
  table.identity.arch = "sm_77";
  CHECK(holds(failures(static_report(table, any).findings, Check::legality), "sm_77"));
}

TEST_CASE("validate: token counts that are missing or were asked for in vain fall short") {
  Table table = sample_table();
  table.missing = {3072};
  Expectation more = expectation();
  more.token_counts = {1, 2, 8, 64, 4096};
  const std::string text = failures(static_report(table, more).findings, Check::coverage);
  CHECK(holds(text, "2, 3072, 4096"));
  CHECK(holds(text, "--tokens 2,3072,4096"));
  table.entries.clear();
  CHECK_FALSE(static_report(table).good());
}

TEST_CASE("validate: every kind of illegal plan is named") {
  const auto legality = [](const std::function<void(Plan&)>& change) {
    Table table = sample_table();
    change(table.entries.at(8).plan);
    const TableReport report = static_report(table);
    CHECK(report.entries.at(0).good());
    return failures(report.entries.at(1).findings, Check::legality);
  };
  const auto with = [&](const char* name, int value) {
    return legality([&](Plan& plan) { plan.steps.at(0).point.set(name, value); });
  };
  CHECK(holds(with("BLOCK_SIZE_M", 0), "gemm1: values: BLOCK_SIZE_M=0"));
  CHECK(holds(with("NUM_WARPS", -4), "NUM_WARPS=-4"));
  CHECK(holds(with("NUM_STAGES", 2147483647), "NUM_STAGES"));
  CHECK(holds(with("WARP_SPEED", 9), "WARP_SPEED"));
  CHECK(holds(with("NUM_WARPS", 32), "gemm1"));
  CHECK(holds(legality([](Plan& plan) {
                plan.steps.at(1).point = Point({{"FP8", 0}});
              }),
              "gemm2: parameters: BLOCK_SIZE_M is missing"));
  CHECK(holds(legality([](Plan& plan) { plan.steps.at(0).variant = "portible"; }), "portable"));
  CHECK(holds(legality([](Plan& plan) { plan.steps.pop_back(); }), "0 gemm2 steps"));
  CHECK(
      holds(legality([](Plan& plan) { plan.steps.push_back(plan.steps.at(0)); }), "2 gemm1 steps"));
  CHECK(holds(legality([](Plan& plan) {
                plan.steps.push_back({"gemm3", "portable", {}});
              }),
              "unknown op 'gemm3'"));
}

TEST_CASE("validate: a point that a search need not try is legal") {
  Table table = sample_table();
  table.entries[4096] = entry_at(table.identity, 4096, 300);  // 1024 rows an expert in tiles of 64
  const Problem problem{table.identity.shape, Dtype::bf16, 4096, {}, 0};
  const SearchSpace space =
      find_variant("portable").space(known_gpu("h200"), problem, Stage::gemm1, Fp8Mode::both);
  REQUIRE(space.reject(table.entries.at(4096).plan.steps.at(0).point));
  CHECK(static_report(table).good());
}

TEST_CASE("validate: recorded and predicted times are never accepted as measured") {
  for (const Source source : {Source::recorded, Source::predicted}) {
    Table table = sample_table();
    table.entries.at(8).source = source;
    FakeEvaluator evaluator(table);
    const TableReport report = device_report(table, evaluator);
    CHECK_FALSE(report.good());
    CHECK(holds(failures(report.entries.at(1).findings, Check::provenance),
                std::string(to_string(source))));
    CHECK(report.entries.at(0).good());
  }
}

TEST_CASE("validate: times that contradict each other are refused") {
  Table table = sample_table();
  table.entries.at(1).timing.num_samples = 0;
  table.entries.at(8).timing.p10_us = table.entries.at(8).timing.median_us + 1;
  table.entries.at(64).speedup = 9;
  for (const EntryReport& entry : static_report(table).entries)
    CHECK(failures(entry.findings, Check::provenance) != "");
}

TEST_CASE("validate: on a GPU a right and fast table is good") {
  const Table table = tuned_table();
  FakeEvaluator evaluator(table);
  evaluator.us.at(64) = {table.entries.at(64).timing.median_us * 1.09};
  const TableReport report = device_report(table, evaluator);
  CAPTURE(validation_text(report));
  CHECK(report.good());
  CHECK(report.checked_on_device);
  CHECK(evaluator.num_prefetched == 6);
  CHECK(report.entries.at(0).reference_trial->timing.median_us == 200);
}

TEST_CASE("validate: a wrong result is a failure of that entry alone") {
  const Table table = tuned_table();
  FakeEvaluator evaluator(table);
  evaluator.wrong[8] = true;
  const TableReport report = device_report(table, evaluator);
  CHECK(holds(failures(report.entries.at(1).findings, Check::correctness), "relative error 0.7"));
  CHECK(report.entries.at(0).good());
  CHECK(report.entries.at(2).good());
  CHECK(report.checked_on_device);
}

TEST_CASE("validate: a regression counts when it shows twice") {
  const Table table = tuned_table();
  const double recorded = table.entries.at(8).timing.median_us;
  FakeEvaluator evaluator(table);
  evaluator.us.at(8) = {recorded * 1.5, recorded};
  CHECK(device_report(table, evaluator).good());
  evaluator.us.at(8) = {recorded * 1.5, recorded * 1.2};
  const TableReport report = device_report(table, evaluator);
  CHECK(holds(failures(report.entries.at(1).findings, Check::speed), "20.0 % slower"));
  CHECK(report.entries.at(0).good());
}

TEST_CASE("validate: slower than the reference point falls short, within noise it does not") {
  const Table table = tuned_table();
  FakeEvaluator evaluator(table);
  evaluator.reference_us = table.entries.at(8).timing.median_us * 0.95;
  std::string text = failures(device_report(table, evaluator).entries.at(1).findings, Check::speed);
  CHECK(holds(text, "slower than the reference point"));
  evaluator.reference_us = table.entries.at(8).timing.median_us * 0.995;
  text = failures(device_report(table, evaluator).entries.at(1).findings, Check::speed);
  CHECK(text == "");
}

TEST_CASE("validate: an offline evaluator's time is no check of speed") {
  const Table table = tuned_table();
  FakeEvaluator evaluator(table);
  evaluator.source = Source::predicted;
  CHECK_FALSE(device_report(table, evaluator).good());
}

TEST_CASE("validate: a device lost midway keeps what was found and says what was not run") {
  const Table table = tuned_table();
  FakeEvaluator evaluator(table);
  evaluator.device_lost_at = 8;
  const TableReport report = device_report(table, evaluator);
  CHECK_FALSE(report.good());
  CHECK_FALSE(report.checked_on_device);
  REQUIRE(report.error);
  CHECK(report.error->kind() == ErrorKind::device);
  CHECK(report.entries.at(0).trial);
  CHECK_FALSE(report.entries.at(1).trial);
  const std::string text = validation_text(report);
  CHECK(holds(text, "not run"));
  CHECK(holds(text, "the GPU is gone"));
  const std::string junit = validation_junit({&report, 1});
  CHECK(holds(junit, "tests=\"4\" failures=\"0\" errors=\"3\""));
}

TEST_CASE("validate: an illegal entry is not launched") {
  Table table = tuned_table();
  table.entries.at(8).plan.steps.at(0).point.set("BLOCK_SIZE_M", 0);
  FakeEvaluator evaluator(table);
  evaluator.device_lost_at = 8;
  const TableReport report = device_report(table, evaluator);
  CHECK(report.checked_on_device);
  CHECK(evaluator.num_prefetched == 4);
}

TEST_CASE("validation reports: one line an entry, a summary, and JSON that says the same") {
  Table table = sample_table();
  table.entries.at(8).source = Source::predicted;
  const std::vector<TableReport> reports{static_report(sample_table()), static_report(table)};
  const std::string text = validation_text(reports.at(1));
  CHECK(std::count(text.begin(), text.end(), '\n') == 6);  // file, what for, headings, 3 entries
  CHECK(holds(text, "28.5 predicted"));
  CHECK(holds(text, "FALLS SHORT  provenance: the time is predicted"));
  const std::string summary = validation_summary(reports, false);
  CHECK(holds(summary, "1 of 2 tables good, 5 of 6 entries"));
  CHECK(holds(summary, "correctness and speed were not checked"));
  CHECK_FALSE(holds(validation_summary(reports, true), "not checked"));
  const auto json = validation_json(reports, false);
  CHECK(json.at("good") == false);
  CHECK(json.at("tables").at(0).at("good") == true);
  CHECK(json.at("tables").at(1).at("entries").at(1).at("findings").at(0).at("check") ==
        "provenance");
}

TEST_CASE("validation reports: a table's text cannot command the terminal") {
  Table table = sample_table();
  table.identity.gpu = "NVIDIA\x1b[2J\nH200";
  table.entries.at(8).plan.steps.at(0).variant = "\x1b[31m";
  const std::string text = validation_text(check_table("a\x1b.json", table, expectation()));
  CHECK_FALSE(holds(text, "\x1b"));
  CHECK_FALSE(holds(text, "\nH200"));
}

TEST_CASE("validation reports: JUnit is escaped, whatever files and messages hold") {
  TableReport report;
  report.path = "a<b>&\"c'\x01\xff.json";
  report.findings.push_back({Check::identity, "GPU 'x' < \"y\" & z\n]]>", true});
  report.findings.push_back({Check::identity, "only a note", false});
  const std::string junit = validation_junit({&report, 1});
  CHECK(holds(junit, "name=\"a&lt;b&gt;&amp;&quot;c&apos; \xEF\xBF\xBD.json\""));
  CHECK(holds(junit, "GPU &apos;x&apos; &lt; &quot;y&quot; &amp; z ]]&gt;"));
  CHECK_FALSE(holds(junit, "only a note"));
  CHECK(holds(junit, "tests=\"1\" failures=\"1\" errors=\"0\""));
}

}  // namespace moetune
