#include <doctest/doctest.h>
#include <spdlog/spdlog.h>

#include <filesystem>
#include <fstream>

#include "core/error.hpp"
#include "jit/compiler.hpp"
#include "jit/static_check.hpp"
#include "tests/temporary_folder.hpp"
#include "tune/evaluator.hpp"
#include "tune/journal.hpp"

using namespace moetune;
namespace fs = std::filesystem;

namespace {

// Compiled once for all tests: a point takes NVRTC a second or so.
const std::string& cache() {
  static const TemporaryFolder folder;
  return folder.path();
}

Problem problem(Dtype dtype = Dtype::bf16) {
  Problem result;
  result.shape = {"small", 8, 2, 1024, 512};
  result.dtype = dtype;
  result.num_tokens = 256;
  return result;
}

Request request(Stage stage, std::initializer_list<std::pair<const char*, int>> changes = {}) {
  Request result;
  result.stage = stage;
  result.num_tokens = 64;
  for (Step step : reference_plan(known_gpu("h200"), problem()).steps) {
    for (const auto& [name, value] : changes) step.point.set(name, value);
    if (stage == Stage::layer || step.op == to_string(stage))
      result.plan.steps.push_back(std::move(step));
  }
  return result;
}

std::unique_ptr<Evaluator> offline(const std::string& records_dir = "", const char* gpu = "h200",
                                   Dtype dtype = Dtype::bf16) {
  EvaluatorOptions options;
  options.cache_dir = cache();
  options.records_dir = records_dir;
  options.num_threads = 2;
  return make_offline_evaluator(known_gpu(gpu), problem(dtype), options);
}

Trial measured(const Request& request, double median_us) {
  Trial trial;
  trial.stage = request.stage;
  trial.num_tokens = request.num_tokens;
  trial.plan = request.plan;
  trial.timing = {median_us, median_us - 1, median_us + 1, 20, 0};
  return trial;
}

nlohmann::ordered_json identity() {
  return {{"gpu", "NVIDIA H200"}, {"model", "another name"}, {"num_experts", 8},
          {"top_k", 2},           {"hidden_size", 1024},     {"intermediate_size", 512},
          {"dtype", "bf16"},      {"routing", "uniform"},    {"kernels_hash", "an older one"},
          {"strategy", "grid"}};
}

// A journal of these trials in DIR/NVIDIA_H200.
void record(const std::string& dir, const std::string& file, const nlohmann::ordered_json& of,
            const std::vector<JournalTrial>& trials) {
  Journal journal(dir + "/NVIDIA_H200/journals/" + file, of, "moe-tune search", false);
  for (const JournalTrial& trial : trials) journal.append(trial);
}

}  // namespace

TEST_CASE("offline: a point is compiled for real and timed by the model") {
  const auto evaluator = offline();
  CHECK(evaluator->gpu().offline);
  CHECK(evaluator->gpu().name == "NVIDIA H200");
  CHECK_FALSE(evaluator->nvrtc_version().empty());
  const std::vector<Request> all{request(Stage::gemm1), request(Stage::gemm2)};
  evaluator->prefetch(all);
  double sum_us = 0;
  for (const Request& one : all) {
    const Trial trial = evaluator->evaluate(one);
    CAPTURE(trial.reason);
    CHECK(trial.status == TrialStatus::ok);
    CHECK(trial.source == Source::predicted);
    CHECK(trial.plan == one.plan);
    CHECK(trial.num_tokens == 64);
    CHECK(trial.compile_ms > 0);
    CHECK(trial.registers > 16);
    CHECK(trial.spill_bytes == 0);
    CHECK(trial.smem_bytes >= 2 * 2 * 64 * 64 * 2);  // two stages of two 64x64 bf16 tiles
    CHECK(trial.timing.median_us > 0);
    CHECK(trial.timing.num_samples == 0);
    CHECK(trial.rel_err == 0);
    sum_us += trial.timing.median_us;
  }
  const Trial layer = evaluator->evaluate(request(Stage::layer));
  CHECK(layer.status == TrialStatus::ok);
  CHECK(layer.source == Source::predicted);
  CHECK(layer.timing.median_us > sum_us);
}

TEST_CASE("offline: a point is rejected by the resources of its real code, with numbers") {
  const auto evaluator = offline();
  const Trial spilled = evaluator->evaluate(
      request(Stage::gemm1, {{"BLOCK_SIZE_M", 256}, {"BLOCK_SIZE_N", 256}, {"NUM_WARPS", 4}}));
  CHECK(spilled.status == TrialStatus::rejected);
  CHECK(spilled.rule == "spill");
  CHECK(spilled.spill_bytes > 0);
  CHECK(spilled.reason.find(std::to_string(spilled.spill_bytes)) != std::string::npos);
  CHECK(spilled.source == Source::predicted);
  CHECK(spilled.timing.median_us == 0);

  const Trial large = evaluator->evaluate(
      request(Stage::gemm1,
              {{"BLOCK_SIZE_N", 256}, {"BLOCK_SIZE_K", 128}, {"NUM_STAGES", 4}, {"NUM_WARPS", 8}}));
  CHECK(large.status == TrialStatus::rejected);
  CHECK(large.rule == "shared_memory");
  CHECK(large.smem_bytes > 232448);
  CHECK(large.reason.find("232448") != std::string::npos);
}

TEST_CASE("offline: the same point fits a GPU with more shared memory and not one with less") {
  const Request asked =
      request(Stage::gemm1, {{"BLOCK_SIZE_N", 128}, {"NUM_STAGES", 5}, {"NUM_WARPS", 8}});
  CHECK(offline()->evaluate(asked).status == TrialStatus::ok);
  const Trial small = offline("", "rtx4090")->evaluate(asked);
  CHECK(small.status == TrialStatus::rejected);
  CHECK(small.rule == "shared_memory");
}

TEST_CASE("offline: a point that does not compile is a trial that says why in a line") {
  const Trial trial = offline()->evaluate(request(Stage::gemm1, {{"BLOCK_SIZE_N", 7}}));
  CHECK(trial.status == TrialStatus::compile_failed);
  CHECK(trial.reason.find("gemm1: ") == 0);
  CHECK(trial.reason.find("error") != std::string::npos);
  CHECK(trial.reason.find('\n') == std::string::npos);
}

TEST_CASE("offline: a dtype that the GPU cannot multiply is rejected") {
  const Trial trial = offline("", "a100", Dtype::fp8_block)->evaluate(request(Stage::gemm1));
  CHECK(trial.status == TrialStatus::rejected);
  CHECK(trial.rule == "unsupported");
  CHECK(trial.reason.find("fp8_block") != std::string::npos);
}

TEST_CASE("offline: what no trial can hold is an error") {
  Request unknown = request(Stage::gemm1);
  unknown.plan.steps[0].variant = "portabel";
  CHECK_THROWS_AS(offline()->evaluate(unknown), Error);
  Request odd = request(Stage::gemm1);
  odd.plan.steps[0].op = "gemm3";
  CHECK_THROWS_WITH_AS(offline()->evaluate(odd), doctest::Contains("gemm3"), Error);
}

TEST_CASE("offline: a recorded point has its recorded time, others are scaled to the records") {
  const Request known = request(Stage::gemm1);
  const Request other = request(Stage::gemm1, {{"BLOCK_SIZE_N", 128}});
  const double known_us = offline()->evaluate(known).timing.median_us;
  const double other_us = offline()->evaluate(other).timing.median_us;

  const TemporaryFolder results;
  record(results.path(), "a.jsonl", identity(), {{measured(known, 3 * known_us), 0, 1.0}});
  const auto evaluator = offline(results.path());
  const Trial trial = evaluator->evaluate(known);
  CHECK(trial.source == Source::recorded);
  CHECK(trial.timing.median_us == 3 * known_us);
  CHECK(trial.timing.num_samples == 20);
  CHECK(trial.registers > 16);
  const Trial scaled = evaluator->evaluate(other);
  CHECK(scaled.source == Source::predicted);
  CHECK(scaled.timing.median_us == doctest::Approx(std::max(3 * other_us, 1.03 * 3 * known_us)));

  Request elsewhere = known;
  elsewhere.num_tokens = 128;
  CHECK(evaluator->evaluate(elsewhere).source == Source::predicted);
  CHECK(evaluator->evaluate(request(Stage::gemm2)).source == Source::predicted);
}

TEST_CASE("offline: a point without a record is never ahead of the fastest recorded one") {
  const Request slow = request(Stage::gemm1);
  const Request fast = request(Stage::gemm1, {{"BLOCK_SIZE_N", 32}});
  const TemporaryFolder results;
  record(results.path(), "a.jsonl", identity(),
         {{measured(slow, 1e6), 0, 1.0}, {measured(fast, 9e5), 0, 1.0}});
  const auto evaluator = offline(results.path());
  for (const int warps : {2, 4, 8}) {
    const Trial trial =
        evaluator->evaluate(request(Stage::gemm1, {{"BLOCK_SIZE_N", 128}, {"NUM_WARPS", warps}}));
    CHECK(trial.source == Source::predicted);
    CHECK(trial.timing.median_us >= 1.03 * 9e5);
  }
}

TEST_CASE("offline: the most careful record of a plan counts") {
  const Request known = request(Stage::gemm1);
  JournalTrial glance{measured(known, 50), 0, 1.0};
  glance.trial.screened_out = true;
  const TemporaryFolder results;
  record(results.path(), "a.jsonl", identity(),
         {{measured(known, 42), 2, 1.0}, {measured(known, 40), 0, 2.0}});
  record(results.path(), "b.jsonl", identity(), {glance});
  CHECK(offline(results.path())->evaluate(known).timing.median_us == 42);
}

TEST_CASE("offline: a record of the sources of its variants as they are counts before others") {
  const Request known = request(Stage::gemm1);
  nlohmann::ordered_json current = identity();
  current.erase("kernels_hash");
  current["variant_hashes"] = kernel_hashes().variants;
  current["variant_hashes"]["hopper"] = "another";  // not of this plan
  nlohmann::ordered_json changed = current;
  changed["variant_hashes"]["portable"] = "another";
  const TemporaryFolder results;
  record(results.path(), "a.jsonl", current, {{measured(known, 44), 0, 1.0}});
  record(results.path(), "b.jsonl", changed, {{measured(known, 42), 2, 1.0}});
  record(results.path(), "c.jsonl", identity(), {{measured(known, 40), 2, 1.0}});
  CHECK(offline(results.path())->evaluate(known).timing.median_us == 44);
}

TEST_CASE("offline: records of another GPU, layer, dtype or routing, and failures, are not used") {
  const Request known = request(Stage::gemm1);
  const TemporaryFolder results;
  int number = 0;
  for (const auto& [key, value] :
       std::vector<std::pair<const char*, nlohmann::ordered_json>>{{"gpu", "NVIDIA H100"},
                                                                   {"num_experts", 16},
                                                                   {"hidden_size", 2048},
                                                                   {"dtype", "fp8_block"},
                                                                   {"routing", "zipf:1"}}) {
    auto other = identity();
    other[key] = value;
    record(results.path(), std::to_string(number++) + ".jsonl", other,
           {{measured(known, 1), 0, 1}});
  }
  JournalTrial wrong{measured(known, 1), 0, 1.0};
  wrong.trial.status = TrialStatus::wrong_result;
  JournalTrial guess{measured(known, 1), 0, 1.0};
  guess.trial.source = Source::predicted;
  record(results.path(), "same.jsonl", identity(), {wrong, guess});
  CHECK(offline(results.path())->evaluate(known).source == Source::predicted);
}

TEST_CASE("offline: files that are not whole journals cost only themselves") {
  spdlog::set_level(spdlog::level::off);
  const Request known = request(Stage::gemm1);
  const TemporaryFolder results;
  record(results.path(), "m.jsonl", identity(), {{measured(known, 42), 0, 1.0}});
  const std::string folder = results.path() + "/NVIDIA_H200/journals/";
  std::ofstream(folder + "m.jsonl", std::ios::app) << "{\"record\": \"tri";
  std::ofstream(folder + "a.jsonl") << "\x01 not a journal\n";
  std::ofstream(folder + "b.jsonl") << "";
  std::ofstream(folder + "z.jsonl") << "[1, 2]\n{}\n";
  std::ofstream(folder + "table.json") << "{}";
  const Trial trial = offline(results.path())->evaluate(known);
  CHECK(trial.source == Source::recorded);
  CHECK(trial.timing.median_us == 42);
  CHECK(offline(results.path() + "/absent")->evaluate(known).source == Source::predicted);
}
