// The kernels of a layer one by one, without a GPU: what each must move and compute, the report,
// and the command.
#include <doctest/doctest.h>

#include <numeric>
#include <string>
#include <vector>

#include "core/text.hpp"
#include "program/build.hpp"
#include "report/kernel_report.hpp"
#include "tests/bench_command.hpp"

namespace moetune {
namespace {

bool holds(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

std::string steps_of(const std::vector<KernelWork>& works) {
  std::string steps;
  for (const KernelWork& work : works) steps += work.step + "; ";
  return steps;
}

double sum_of(const std::vector<KernelWork>& works, double KernelWork::*field) {
  return std::accumulate(works.begin(), works.end(), 0.0,
                         [&](double sum, const KernelWork& work) { return sum + work.*field; });
}

const Gpu kGpu = known_gpu("h200");
// 512 tokens, 2 of 8 experts each; one expert has no rows.
const Problem kProblem{{"m", 8, 2, 2048, 1024}, Dtype::bf16, 512, {}, 0};
const std::vector<std::int64_t> kRows = {100, 200, 100, 200, 100, 200, 124, 0};

KernelRow sample_row() {
  KernelRow row;
  row.model = "m";
  row.problem = kProblem;
  row.lookup = "exact";
  row.plan = reference_plan(kGpu, kProblem);
  row.timing = {100, 99, 101, 20, 0};
  row.works = kernel_works(build(kGpu, kProblem, row.plan, Stage::layer), kRows);
  return row;
}

}  // namespace

TEST_CASE("kernels: the reference point's works are the layer's, kernel by kernel") {
  const auto works =
      kernel_works(build(kGpu, kProblem, reference_plan(kGpu, kProblem), Stage::layer), kRows);
  CHECK(steps_of(works) == "sort; GEMM1; activation; GEMM2; combine; ");
  CHECK(sum_of(works, &KernelWork::flops) == doctest::Approx(layer_flops(kProblem)));
  const KernelWork& gemm1 = works[1];
  const double weights = 2.0 * 7 * 2 * 1024 * 2048;
  CHECK(gemm1.bytes == doctest::Approx(weights + 2.0 * 512 * 2048 + 2.0 * 1024 * 2 * 1024));
  CHECK(gemm1.flops == doctest::Approx(2.0 * 1024 * 2 * 1024 * 2048));
  CHECK(gemm1.padding == doctest::Approx((2 * 3 + 4 * 3 + 2) * 64 / 1024.0));
  CHECK(gemm1.rounds_full == 0);
  CHECK(works[2].bytes == doctest::Approx(1024 * 1024 * (4.0 + 2.0)));
  CHECK(works[4].bytes == doctest::Approx(1024 * 2048 * 2.0 + 512 * 2048 * 2.0));
}

TEST_CASE("kernels: fp8, fused and joined plans have the kernels that they launch") {
  Problem problem = kProblem;
  problem.dtype = Dtype::fp8_block;
  problem.num_tokens = 4096;
  const std::vector<std::int64_t> rows(8, 1024);
  Plan plan = reference_plan(kGpu, problem);
  for (Step& step : plan.steps) {
    step.variant = "hopper";
    step.point =
        find_variant("hopper").space(kGpu, problem, parse_stage(step.op), Fp8Mode::on).reference();
  }
  plan.steps[0].point.set("FUSE_SWIGLU", 1);
  plan.steps[1].point.set("FUSE_COMBINE", 1);
  const auto works = kernel_works(build(kGpu, problem, plan, Stage::layer), rows);
  const std::string steps = steps_of(works);
  CHECK(holds(steps, "clear; sort: place; "));
  CHECK(steps.ends_with("GEMM2; "));
  CHECK(works.back().fp8);
  CHECK(works.back().rounds_full > 0);
  CHECK(works.back().rounds_full <= 1);
  CHECK(
      works.back().bytes <
      0.6 *
          kernel_works(build(kGpu, kProblem, reference_plan(kGpu, kProblem), Stage::layer), rows)[3]
              .bytes *
          8);
  problem.num_tokens = 64;
  plan = find_variant("swap_ab").joined_plans(kGpu, problem, Fp8Mode::on).at(0);
  const auto joined =
      kernel_works(build(kGpu, problem, plan, Stage::layer), std::vector<std::int64_t>(8, 16));
  CHECK(holds(steps_of(joined), "GEMM1 + GEMM2; "));
  CHECK(sum_of(joined, &KernelWork::flops) == doctest::Approx(layer_flops(problem)));
  problem.num_tokens = 2;
  plan = find_variant("decode").joined_plans(kGpu, problem, Fp8Mode::on).at(0);
  const auto whole =
      kernel_works(build(kGpu, problem, plan, Stage::layer), std::vector<std::int64_t>{1, 1, 1, 1});
  CHECK(steps_of(whole) == "layer; ");
  CHECK(whole[0].bytes ==
        doctest::Approx(weight_bytes(problem.shape, problem.dtype) / 2).epsilon(0.01));
}

TEST_CASE("kernels: each stands beside its floor, and a slow GEMM's counters are spelt out") {
  KernelRow row = sample_row();
  for (const KernelWork& work : row.works) {
    KernelCounters kernel;
    kernel.name = work.kernel;
    kernel.time_us = 2 * floor_us(kGpu, Dtype::bf16, work.bytes, work.flops);
    kernel.l2_hits = 60;
    kernel.l2_misses = 40;
    row.counters.push_back(kernel);
  }
  row.works[1].flops *= 100;  // enough to be bound by products
  row.counters[1].time_us = 2 * floor_us(kGpu, Dtype::bf16, 0, row.works[1].flops);
  row.counters[1].tensor_busy_pct = 55.5;
  BenchRun run;
  run.gpu = kGpu;
  const std::vector<KernelRow> rows = {row};
  const std::string text = kernel_text(run, rows);
  CHECK(
      holds(text, "GEMM1: 50.0 % of the matrix rate: tensor pipe 55.5 % busy, L2 hit rate 60.0 %"));
  CHECK(!holds(text, "GEMM2: "));
  const auto json = nlohmann::json::parse(kernel_json(run, rows).dump());
  const auto& kernels = json.at("rows")[0].at("kernels");
  REQUIRE(kernels.size() == 5);
  CHECK(kernels[0].at("fraction_of_floor").get<double>() == doctest::Approx(0.5));
  CHECK(kernels[0].at("flops").is_null());
  CHECK(kernels[0].at("sm_mhz").is_null());
  CHECK(kernels[1].at("tensor_busy").get<double>() == doctest::Approx(0.555));
  CHECK(kernels[3].at("step") == "GEMM2");
}

TEST_CASE("kernels: without counters the floors stand alone, and unexpected kernels have none") {
  KernelRow row = sample_row();
  row.no_counters = "there is no ncu";
  BenchRun run;
  run.gpu = kGpu;
  std::vector<KernelRow> rows = {row};
  CHECK(holds(kernel_text(run, rows), "no counters: there is no ncu"));
  auto json = nlohmann::json::parse(kernel_json(run, rows).dump()).at("rows")[0];
  CHECK(json.at("kernels").size() == 5);
  CHECK(json.at("kernels")[1].at("time_us").is_null());
  CHECK(json.at("kernels")[1].at("floor_us").get<double>() > 0);
  CHECK(json.at("layer_us") == 100);
  rows[0].counters = {KernelCounters{.name = "moe_gemm", .time_us = 5}};
  json = nlohmann::json::parse(kernel_json(run, rows).dump()).at("rows")[0];
  CHECK(json.at("kernels").size() == 1);
  CHECK(json.at("kernels")[0].at("step").is_null());
  CHECK(json.at("kernels")[0].at("time_us") == 5);
}

TEST_CASE("kernels command: it needs a GPU, and goes with no other mode") {
  const auto run = [](const std::string& arguments) { return run_bench("--kernels", arguments); };
  const auto [offline, why] = run("--device offline:h200");
  CHECK(offline == 3);
  CHECK(holds(why, "--kernels only measures: it needs a GPU"));
  CHECK(run("--techniques").first == 2);
  CHECK(run("--counters sometimes").first == 2);
}

}  // namespace moetune
