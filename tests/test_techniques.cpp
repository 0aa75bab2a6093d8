// Techniques one by one without a GPU: the report, plans with a parameter set, and the command.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <string>
#include <vector>

#include "bench/techniques.hpp"
#include "core/text.hpp"
#include "report/technique_report.hpp"
#include "tests/bench_command.hpp"

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
  row.no_counters = "no ncu";
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
  CHECK(holds(text, "no L2 hit rates: no ncu"));
  const auto json = technique_json(run, rows);
  const auto& pairs = json.at("rows")[0].at("pairs");
  CHECK(pairs[0].at("gain").get<double>() == doctest::Approx(1.2));
  CHECK(pairs[0].at("literature") == "1.18x");
  CHECK(pairs[1].at("gain").is_null());
  CHECK(pairs[1].at("literature").is_null());
  CHECK(pairs[1].at("without").at("median_us").is_null());
  CHECK(pairs[1].at("without").at("l2_hit_rates").is_null());
  CHECK(json.at("rows")[0].at("no_l2_hit_rates") == "no ncu");
}

TEST_CASE("techniques: L2 hit rates of each GEMM and, weighted by sectors, of the layer") {
  const auto kernel = [](const char* name, double hits, double misses) {
    KernelCounters made;
    made.name = name;
    made.l2_hits = hits;
    made.l2_misses = misses;
    return made;
  };
  BenchRun run;
  run.gpu = known_gpu("h200");
  TechniqueRow row;
  row.problem = {{"mixtral-8x7b", 8, 2, 4096, 14336}, Dtype::bf16, 16, {}, 0};
  row.pairs = {{"tile order", side("rows", 120), side("columns", 100), "", ""},
               {"padding", side("padded", 120), side("as they are", 100), "", ""}};
  row.pairs[0].without.counters = {kernel("sort_small", 5, 5), kernel("moe_gemm", 80, 20),
                                   kernel("moe_gemm_sm90", 30, 70), kernel("combine", 5, 5)};
  row.pairs[1].with.counters = {kernel("sort_slots", 0, 10), kernel("nvjet_hsh", 10, 0),
                                kernel("gather_rows", 0, 10), kernel("nvjet_tst", 0, 30)};
  row.pairs[1].without.no_counters = "up to 256 products";
  const std::vector<TechniqueRow> rows = {row};
  const auto json = technique_json(run, rows).at("rows")[0];
  const auto& rates = json.at("pairs")[0].at("without").at("l2_hit_rates");
  CHECK(rates.at("gemms").size() == 2);
  CHECK(rates.at("gemms")[0].at("hit_rate").get<double>() == doctest::Approx(0.8));
  CHECK(rates.at("gemms")[1].at("hit_rate").get<double>() == doctest::Approx(0.3));
  CHECK(rates.at("layer").get<double>() == doctest::Approx(120.0 / 220));
  const auto& library = json.at("pairs")[1].at("with").at("l2_hit_rates");
  CHECK(library.at("gemms").size() == 1);
  CHECK(library.at("gemms")[0].at("kernel") == "cuBLAS");
  CHECK(library.at("gemms")[0].at("hit_rate").get<double>() == doctest::Approx(0.25));
  CHECK(json.at("no_l2_hit_rates").is_null());
  const std::string text = technique_text(run, rows);
  CHECK(holds(text, "80.0 / 30.0, 54.5"));
  CHECK(holds(text, "padding, padded: no L2 hit rates: up to 256 products"));
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
  const auto run = [](const std::string& arguments) {
    return run_bench("--techniques", arguments);
  };
  const auto [offline, why] = run("--device offline:h200");
  CHECK(offline == 3);
  CHECK(holds(why, "--techniques only measures: it needs a GPU"));
  CHECK(run("--dtype fp8_block").first == 2);
  CHECK(run("--serving").first == 2);
}

}  // namespace moetune
