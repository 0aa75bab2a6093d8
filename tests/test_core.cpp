#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <set>
#include <string>

#include "core/error.hpp"
#include "core/gpu.hpp"
#include "core/objective.hpp"
#include "core/point.hpp"
#include "core/problem.hpp"
#include "core/text.hpp"
#include "core/trial.hpp"

using namespace moetune;

namespace {

struct Caught {
  ErrorKind kind = ErrorKind::failed;
  std::string message = "no error";
  bool holds(const std::string& part) const { return message.find(part) != std::string::npos; }
};

Caught caught(const auto& call) {
  try {
    call();
  } catch (const Error& error) {
    return {error.kind(), error.what()};
  }
  return {};
}

Problem problem_of(std::int64_t e, std::int64_t k, std::int64_t h, std::int64_t i,
                   std::int64_t t = 1, Dtype dtype = Dtype::bf16) {
  Problem problem;
  problem.shape = {"custom", e, k, h, i};
  problem.num_tokens = t;
  problem.dtype = dtype;
  return problem;
}

SearchSpace small_space() {
  SearchSpace space;
  space.parameters = {{"A", {1, 2, 4}, 2, ""}, {"B", {10, 20}, 10, ""}};
  space.constraints = {{"product", [](const Point& p) -> std::optional<std::string> {
                          if (p.at("A") * p.at("B") <= 40) return std::nullopt;
                          return "the product is above 40";
                        }}};
  return space;
}

}  // namespace

TEST_CASE("point: values are found, replaced and kept in order") {
  Point point({{"A", 1}, {"B", 2}});
  point.set("B", 3);
  point.set("C", 4);
  CHECK(point.key() == "A=1,B=3,C=4");
  CHECK(point.at("B") == 3);
  CHECK(point.value_or("D", 7) == 7);
  CHECK_FALSE(point.has("D"));
  CHECK(caught([&] { point.at("D"); }).holds("D"));
}

TEST_CASE("point: JSON round trip keeps order; other than integers is refused") {
  const Point point({{"B", 64}, {"A", -1}});
  const nlohmann::ordered_json json = point;
  CHECK(json.dump() == "{\"B\":64,\"A\":-1}");
  CHECK(json.get<Point>() == point);
  for (const char* bad : {"[]", "{\"A\": 1.5}", "{\"A\": true}", "{\"A\": \"1\"}", "{\"A\": {}}",
                          "{\"A\": 2147483648}", "{\"A\": 18446744073709551615}"}) {
    CAPTURE(bad);
    CHECK(caught([&] { parse_json(bad, "f").get<Point>(); }).kind == ErrorKind::input);
  }
}

TEST_CASE("space: indices enumerate every point once, the last parameter fastest") {
  const SearchSpace space = small_space();
  CHECK(space.size() == 6);
  CHECK(space.at(0).key() == "A=1,B=10");
  CHECK(space.at(1).key() == "A=1,B=20");
  CHECK(space.at(5).key() == "A=4,B=20");
  std::set<std::string> keys;
  for (std::uint64_t i = 0; i < space.size(); ++i) keys.insert(space.at(i).key());
  CHECK(keys.size() == 6);
  CHECK_THROWS_AS(space.at(6), Error);
  CHECK(space.reference().key() == "A=2,B=10");
}

TEST_CASE("space: a point is rejected under the rule's name with its numbers") {
  const SearchSpace space = small_space();
  CHECK_FALSE(space.reject(Point({{"A", 2}, {"B", 20}})));
  CHECK(space.reject(Point({{"A", 4}, {"B", 20}}))->rule == "product");
  CHECK(space.reject(Point({{"A", 4}}))->reason == "B is missing");
  CHECK(space.reject(Point({{"A", 1}, {"B", 10}, {"C", 1}}))->reason == "C is not a parameter");
  const Point off_grid({{"A", 3}, {"B", 10}});
  CHECK_FALSE(space.reject(off_grid));
  CHECK(space.reject(off_grid, true)->reason == "A=3 is not one of 1, 2, 4");
}

TEST_CASE("problem: dtypes and routings are read back as written; wrong ones are explained") {
  for (const Dtype dtype : {Dtype::bf16, Dtype::fp8_block, Dtype::fp8_tensor})
    CHECK(parse_dtype(to_string(dtype)) == dtype);
  CHECK(caught([] { parse_dtype("fp8_blok"); }).holds("did you mean fp8_block?"));
  for (const char* text : {"uniform", "zipf:1.2", "hot:8", "file:a:b.txt"})
    CHECK(to_string(parse_routing(text)) == text);
  CHECK(parse_routing("zipf").exponent == 1.0);
  for (const char* bad :
       {"", "unifrom", "uniform:1", "zipf:", "zipf:x", "zipf:-1", "zipf:nan", "zipf:inf", "hot",
        "hot:0", "hot:1.5", "hot:99999999999999999999", "file", "file:"}) {
    CAPTURE(bad);
    CHECK(caught([&] { parse_routing(bad); }).kind == ErrorKind::usage);
  }
}

TEST_CASE("problem: sizes that cannot work are refused with their numbers") {
  CHECK_NOTHROW(check(problem_of(128, 8, 2048, 768, 4096, Dtype::fp8_block)));
  const auto why = [](const Problem& problem) {
    const Caught error = caught([&] { check(problem); });
    CHECK(error.kind == ErrorKind::input);
    return error.message;
  };
  const auto refused = [&](const Problem& problem, const char* part) {
    const std::string message = why(problem);
    CAPTURE(message);
    CHECK(message.find(part) != std::string::npos);
  };
  refused(problem_of(0, 1, 64, 64), "num_experts is 0");
  refused(problem_of(8, -2, 64, 64), "top_k is -2");
  refused(problem_of(8, 9, 64, 64), "top_k 9 is more than the 8 experts");
  refused(problem_of(8, 2, 64, 64, 0), "num_tokens is 0");
  refused(problem_of(8, 2, 1LL << 31, 64), "hidden_size is 2147483648");
  refused(problem_of(1 << 30, 2, 1 << 30, 1 << 30), "overflows");
  refused(problem_of(8, 8, 64, 64, 1 << 30), "use fewer tokens");
  refused(problem_of(8, 2, 68, 64), "hidden_size 68 is not a multiple of 8");
  refused(problem_of(32, 4, 2880, 2880, 1, Dtype::fp8_block), "use --dtype fp8_tensor");
  refused(problem_of(8, 2, 64, 72, 1, Dtype::fp8_tensor), "use --dtype bf16");
  Problem hot = problem_of(8, 2, 64, 64);
  hot.routing = parse_routing("hot:1");
  refused(hot, "between top_k 2 and 8");
  hot.routing = parse_routing("hot:9");
  refused(hot, "between top_k 2 and 8");
}

TEST_CASE("problem: expected experts, bytes and flops agree with counting by hand") {
  const Problem one = problem_of(8, 2, 256, 512);
  CHECK(expected_active_experts(one.shape, 1) == doctest::Approx(2));
  CHECK(expected_active_experts(one.shape, 2) == doctest::Approx(8 * (1 - 0.75 * 0.75)));
  CHECK(expected_active_experts(one.shape, 100000) == doctest::Approx(8));
  CHECK(expected_active_experts({"m", 4, 4, 8, 8}, 1) == doctest::Approx(4));
  const double elements = 8.0 * 3 * 256 * 512;
  CHECK(weight_bytes(one.shape, Dtype::bf16) == doctest::Approx(2 * elements));
  CHECK(weight_bytes(one.shape, Dtype::fp8_block) ==
        doctest::Approx(elements + 4 * elements / (128 * 128)));
  CHECK(weight_bytes(one.shape, Dtype::fp8_tensor) == doctest::Approx(elements + 4 * 16));
  CHECK(layer_bytes(one) == doctest::Approx(2.0 / 8 * 2 * elements + 2 * 2 * 256));
  CHECK(layer_flops(one) == doctest::Approx(6.0 * 2 * 256 * 512));
  Problem hot = problem_of(8, 2, 256, 512, 1000);
  hot.routing = parse_routing("hot:2");
  CHECK(layer_bytes(hot) == doctest::Approx(2.0 / 8 * 2 * elements + 2 * 2 * 256 * 1000.0));
}

TEST_CASE("trial: JSON round trip keeps everything, a failed check's NaN too") {
  Trial trial;
  trial.stage = Stage::gemm2;
  trial.num_tokens = 64;
  trial.plan.steps = {{"gemm2", "portable", Point({{"BLOCK_SIZE_M", 64}})}};
  trial.rel_err = 0.004;
  trial.registers = 128;
  trial.smem_bytes = 65536;
  trial.timing = {12.5, 12, 13, 20, 1, 1410, true};
  trial.workspace_bytes = std::int64_t{5} << 32;
  trial.energy_mj = 0.25;
  trial.screened_out = true;
  trial.source = Source::recorded;
  nlohmann::ordered_json json = trial;
  const Trial back = parse_json(json.dump(), "f").get<Trial>();
  CHECK(nlohmann::ordered_json(back) == json);
  CHECK(back.plan.key() == "gemm2:portable:BLOCK_SIZE_M=64");
  CHECK(back.timing.p90_us == 13);
  CHECK(back.timing.clock_mhz == 1410);
  CHECK(back.timing.unsteady);
  CHECK(back.workspace_bytes == std::int64_t{5} << 32);
  CHECK(back.energy_mj == 0.25);
  CHECK(back.screened_out);

  trial.status = TrialStatus::wrong_result;
  trial.rel_err = std::numeric_limits<double>::quiet_NaN();
  trial.reason = "not finite";
  json = trial;
  CHECK_FALSE(json.contains("median_us"));
  const Trial wrong = parse_json(json.dump(), "f").get<Trial>();
  CHECK(wrong.status == TrialStatus::wrong_result);
  CHECK(wrong.reason == "not finite");
  CHECK(std::isnan(wrong.rel_err));
}

TEST_CASE("objective: names are read back, and a cost is what was measured or nothing") {
  for (const char* name : {"time", "error", "energy", "memory"})
    CHECK(to_string(parse_objective(name)) == name);
  CHECK(caught([] { parse_objective("speed"); }).holds("time, error, energy, memory"));
  Trial trial;
  for (const Objective one :
       {Objective::time, Objective::error, Objective::energy, Objective::memory})
    CHECK_FALSE(cost(one, trial));
  trial.timing.median_us = 12;
  trial.rel_err = 0.003;
  trial.energy_mj = 7;
  trial.workspace_bytes = 4096;
  CHECK(cost(Objective::time, trial) == 12);
  CHECK(cost(Objective::error, trial) == 0.003);
  CHECK(cost(Objective::energy, trial) == 7);
  CHECK(cost(Objective::memory, trial) == 4096);
  trial.quantisation_err = 0.05;  // against bf16, which is what a user loses
  CHECK(cost(Objective::error, trial) == 0.05);
  trial.rel_err = std::numeric_limits<double>::quiet_NaN();
  trial.quantisation_err = 0;
  CHECK_FALSE(cost(Objective::error, trial));
  trial.status = TrialStatus::wrong_result;
  CHECK_FALSE(cost(Objective::time, trial));
}

TEST_CASE("trial: damaged JSON is an input error that names the field") {
  const Trial trial;
  const nlohmann::ordered_json good = trial;
  for (const char* name : {"stage", "num_tokens", "plan", "status", "median_us", "source"}) {
    CAPTURE(name);
    nlohmann::ordered_json missing = good;
    missing.erase(name);
    CHECK(caught([&] { missing.get<Trial>(); }).holds(name));
    nlohmann::ordered_json wrong = good;
    wrong[name] = nlohmann::ordered_json::object();
    CHECK(caught([&] { wrong.get<Trial>(); }).kind == ErrorKind::input);
  }
  CHECK(caught([] { nlohmann::ordered_json(7).get<Trial>(); }).kind == ErrorKind::input);
  CHECK(caught([] { parse_stage("gemm3"); }).holds("gemm1, gemm2, layer"));
}

TEST_CASE("gpu: names, architectures and limits of the known ones") {
  const Gpu h200 = known_gpu("h200");
  CHECK(h200.name == "NVIDIA H200");
  CHECK(file_name(h200) == "NVIDIA_H200");
  CHECK(known_gpu("NVIDIA H200").num_sms == 132);
  CHECK(known_gpu("NVIDIA_H200").l2_bytes == 62914560);
  CHECK(arch_name(h200) == "sm_90a");
  CHECK(arch_name(known_gpu("a100")) == "sm_80");
  CHECK(arch_name(known_gpu("l40s")) == "sm_89");
  CHECK(arch_name(known_gpu("b200")) == "sm_100a");
  CHECK(arch_name(known_gpu("rtx5090")) == "sm_120a");
  CHECK(h200.smem_per_block == 232448);
  CHECK(known_gpu("a100").smem_per_block == 166912);
  CHECK(known_gpu("rtx4090").smem_per_block == 101376);
  CHECK(known_gpu("rtx5090").smem_per_block == 101376);
  CHECK(caught([] { known_gpu("h20"); }).holds("did you mean h200?"));
  for (const auto& [name, gpu] : known_gpus()) {
    CAPTURE(name);
    CHECK(gpu.offline);
    CHECK(gpu_for_arch(arch_name(gpu)).cc() == gpu.cc());
    CHECK((gpu.fp8_tflops > 0) == (gpu.cc() >= 89));
  }
  CHECK(gpu_for_arch("sm_90").name == "NVIDIA H200");
  for (const char* bad : {"sm_70", "sm_", "90", "", "sm_99999999999", "sm_9x"})
    CHECK(caught([&] { gpu_for_arch(bad); }).kind == ErrorKind::usage);
}
