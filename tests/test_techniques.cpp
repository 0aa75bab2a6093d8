// Techniques one by one without a GPU: the report, plans with a parameter set, and the command.
#include <doctest/doctest.h>
#include <fmt/format.h>
#include <sys/wait.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "bench/techniques.hpp"
#include "core/text.hpp"
#include "report/technique_report.hpp"
#include "tests/table_fixture.hpp"

namespace moetune {
namespace {

bool holds(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TechniqueSide side(const char* label, double median_us) {
  TechniqueSide made;
  made.label = label;
  made.timing = {median_us, median_us, median_us, 20, 0};
  return made;
}

}  // namespace

TEST_CASE("techniques: measured gains stand beside the literature's, and failures are explained") {
  BenchRun run;
  run.gpu = known_gpu("h200");
  TechniqueRow row;
  row.model = "mixtral-8x7b";
  row.problem = {{"mixtral-8x7b", 8, 2, 4096, 14336}, Dtype::bf16, 16, {}, 0};
  row.lookup = "exact";
  row.pairs = {{"split-K", side("SPLIT_K=1", 120), side("SPLIT_K=2", 100), "1.18x", ""},
               {"fp8 weights", side("each call", 300), side("once", 100), "", "all experts"}};
  row.pairs[1].without.status = LevelStatus::skipped;
  row.pairs[1].without.reason = "no e4m3";
  CHECK(gain(row.pairs[0]) == doctest::Approx(1.2));
  CHECK(gain(row.pairs[1]) == 0);
  const std::vector<TechniqueRow> rows = {row};
  const std::string text = technique_text(run, rows);
  CHECK(holds(text, "1.20x"));
  CHECK(holds(text, "1.18x"));
  CHECK(holds(text, "fp8 weights, each call: skipped: no e4m3"));
  CHECK(holds(text, "fp8 weights: all experts"));
  CHECK(holds(text, "L2 hit rates are not collected"));
  const auto json = technique_json(run, rows);
  const auto& pairs = json.at("rows")[0].at("pairs");
  CHECK(pairs[0].at("gain").get<double>() == doctest::Approx(1.2));
  CHECK(pairs[0].at("literature") == "1.18x");
  CHECK(pairs[1].at("gain").is_null());
  CHECK(pairs[1].at("literature").is_null());
  CHECK(pairs[1].at("without").at("median_us").is_null());
}

TEST_CASE("techniques: a parameter is set in both GEMMs, and a variant that lacks it is named") {
  const Problem problem{{"m", 8, 2, 512, 256}, Dtype::bf16, 16, {}, 0};
  Plan plan = reference_plan(known_gpu("h200"), problem);
  CHECK(set_parameter(plan, "ORDER", 1) == "");
  for (const Step& step : plan.steps) CHECK(step.point.at("ORDER") == 1);
  CHECK(holds(set_parameter(plan, "FUSE_SWIGLU", 1), "gemm2 of portable has no FUSE_SWIGLU"));
}

TEST_CASE(
    "techniques: a pair starts from the reference point where the best plan lacks the parameter") {
  const Gpu gpu = known_gpu("h200");
  const Problem problem{{"m", 64, 8, 2048, 1024}, Dtype::bf16, 8, {}, 0};
  const Plan reference = reference_plan(gpu, problem);
  Plan plan = reference;
  CHECK(with_parameter(plan, "ORDER", reference) == "");
  CHECK(plan == reference);
  for (const char* name : {"swap_ab", "decode"}) {
    plan = find_variant(name).joined_plans(gpu, problem, Fp8Mode::off).at(0);
    CHECK(holds(with_parameter(plan, "FUSE_SWIGLU", reference, "gemm1"),
                fmt::format("share a launch of {}", name)));
    CHECK(plan == reference);
  }
  plan.steps[1].variant = "hopper";
  plan.steps[1].point =
      find_variant("hopper").space(gpu, problem, Stage::gemm2, Fp8Mode::off).reference();
  CHECK(with_parameter(plan, "FUSE_SWIGLU", reference, "gemm1") == "");
  CHECK(with_parameter(plan, "SPLIT_K", reference) ==
        "hopper has no SPLIT_K: gemm2 starts from the reference point");
  CHECK(plan == reference);
}

TEST_CASE("techniques command: it needs a GPU and bf16, and goes with no other mode") {
  const TemporaryDirectory directory;
  const auto run = [&](const std::string& arguments) {
    const std::string err = directory.file("err");
    const int status = std::system(fmt::format("{} bench --techniques --shape 8,2,512,256 {} "
                                               ">/dev/null 2>'{}'",
                                               MOETUNE_PROGRAM, arguments, err)
                                       .c_str());
    return std::pair{WIFEXITED(status) ? WEXITSTATUS(status) : -1, read_file(err)};
  };
  const auto [offline, why] = run("--device offline:h200");
  CHECK(offline == 3);
  CHECK(holds(why, "--techniques only measures: it needs a GPU"));
  CHECK(run("--dtype fp8_block").first == 2);
  CHECK(run("--serving").first == 2);
}

}  // namespace moetune
