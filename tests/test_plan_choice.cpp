// Which plan a call of the library takes, without a GPU.
#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>

#include "core/text.hpp"
#include "kernels/variant.hpp"
#include "runtime/plan_choice.hpp"
#include "tests/temporary_folder.hpp"

using namespace moetune;
namespace fs = std::filesystem;

namespace {

const Gpu kGpu = known_gpu("h200");

Problem problem_of(std::int64_t intermediate = 512) {
  Problem problem;
  problem.shape = {"custom", 8, 2, 256, intermediate};
  return problem;
}

Table table_of(const Problem& problem) {
  Table table;
  table.identity.gpu = kGpu.name;
  table.identity.arch = "sm_90a";
  table.identity.driver = "1";
  table.identity.nvrtc = "13.0";
  table.identity.shape = problem.shape;
  table.created = "2026-01-01T00:00:00Z";
  for (const std::int64_t num_tokens : {1, 8, 64}) {
    TableEntry entry;
    entry.plan = reference_plan(kGpu, problem);
    entry.plan.steps[0].point.set("NUM_STAGES", num_tokens == 8 ? 3 : 4);
    entry.timing = {10, 9, 11, 20, 0};
    entry.reference_us = 10;
    entry.speedup = 1;
    table.entries.emplace(num_tokens, entry);
  }
  return table;
}

std::vector<PlanChoice> choose(const PlanChooser& chooser, std::int64_t num_tokens,
                               std::string* all_notes = nullptr) {
  std::vector<std::string> notes;
  auto choices = chooser.choose(num_tokens, notes);
  if (all_notes != nullptr)
    for (const std::string& note : notes) *all_notes += note + "\n";
  return choices;
}

}  // namespace

TEST_CASE(
    "plan choice: exact, else the nearest key by ratio, whether a file or a folder is named") {
  const TemporaryFolder folder;
  const Problem problem = problem_of();
  const std::string file = write_table(folder.path(), table_of(problem));
  fs::create_directories(folder.path() + "/by_gpu/NVIDIA_H200");
  write_table(folder.path() + "/by_gpu/NVIDIA_H200", table_of(problem));
  for (const std::string& path : {file, folder.path(), folder.path() + "/by_gpu"}) {
    CAPTURE(path);
    const PlanChooser chooser(kGpu, problem, {}, {path});
    CHECK(chooser.keys() == std::vector<std::int64_t>{1, 8, 64});
    const auto exact = choose(chooser, 8);
    REQUIRE(exact.size() == 3);  // the others follow, should it not compile
    std::string notes;
    choose(chooser, 8, &notes);
    CHECK(notes.find("portable changed since the entry for 8 tokens was tuned") !=
          std::string::npos);
    CHECK(exact[0].step == ChoiceStep::exact);
    CHECK(exact[0].plan.steps[0].point.at("NUM_STAGES") == 3);
    CHECK(exact[0].recorded_us == 10);
    const auto near = choose(chooser, 3);
    CHECK(near.at(0).step == ChoiceStep::nearest);
    CHECK(near.at(0).key == 8);
    CHECK(near.at(1).key == 1);
    CHECK(choose(chooser, 100'000).at(0).key == 64);
  }
}

TEST_CASE("plan choice: an entry that breaks a rule is passed over with a note") {
  const TemporaryFolder folder;
  const Problem problem = problem_of();
  Table table = table_of(problem);
  table.entries.at(8).plan.steps[0].point.set("NUM_STAGES", 97);
  const std::string file = write_table(folder.path(), table);
  std::string notes;
  const auto choices = choose(PlanChooser(kGpu, problem, {}, {file}), 8, &notes);
  REQUIRE(choices.size() == 2);
  CHECK(choices[0].key != 8);
  CHECK(notes.find("the entry for 8 tokens was passed over") != std::string::npos);
  CHECK(notes.find("97") != std::string::npos);
}

TEST_CASE("plan choice: tables of others, torn and missing ones are passed over with a note") {
  const TemporaryFolder folder;
  const Problem problem = problem_of();
  Table other_gpu = table_of(problem);
  other_gpu.identity.gpu = "NVIDIA H100 80GB HBM3";
  const std::string a = write_table(folder.path(), other_gpu);
  const std::string b = write_table(folder.path(), table_of(problem_of(768)));
  const std::string torn = folder.path() + "/torn.json";
  std::ofstream(torn) << read_file(b).substr(0, 300);
  std::string notes;
  const PlanChooser chooser(kGpu, problem, {}, {a, b, torn, folder.path() + "/none.json"});
  const auto choices = choose(chooser, 16, &notes);
  CHECK(notes.find("is a table of NVIDIA H100 80GB HBM3") != std::string::npos);
  CHECK(notes.find("I=768") != std::string::npos);
  CHECK(notes.find("torn.json") != std::string::npos);
  CHECK(notes.find("none.json") != std::string::npos);
  CHECK(notes.find("no table of E=8, K=2, H=256, I=512, bf16") != std::string::npos);
  REQUIRE_FALSE(choices.empty());
  CHECK(choices[0].step == ChoiceStep::model);
  CHECK(choices[0].key == 16);
}

TEST_CASE(
    "plan choice: without a table the time model's plans are legal, whatever the GPU and dtype") {
  for (const char* name : {"a100", "h100"}) {
    const Gpu gpu = known_gpu(name);
    for (const Dtype dtype : {Dtype::bf16, Dtype::fp8_block, Dtype::fp8_tensor}) {
      if (is_fp8(dtype) && gpu.cc() < 89) continue;
      Problem problem = problem_of();
      problem.dtype = dtype;
      const PlanChooser chooser(gpu, problem, {}, {});
      for (const std::int64_t num_tokens : {1, 3000}) {
        CAPTURE(name);
        CAPTURE(to_string(dtype));
        CAPTURE(num_tokens);
        const auto choices = choose(chooser, num_tokens);
        REQUIRE(choices.size() >= 2);
        problem.num_tokens = num_tokens;
        for (const PlanChoice& choice : choices) {
          CHECK(plan_defect(gpu, problem, {}, choice.plan) == "");
          CHECK(choice.plan != reference_plan(gpu, problem));
        }
      }
    }
  }
}

TEST_CASE("plan choice: few experts with many rows have plans too") {
  for (const char* name : {"a100", "h200"}) {
    Problem problem;
    problem.shape = {"custom", 4, 4, 512, 256};
    const Gpu gpu = known_gpu(name);
    const PlanChooser chooser(gpu, problem, {}, {});
    for (const std::int64_t num_tokens : {2048, 32768}) {
      CAPTURE(name);
      CAPTURE(num_tokens);
      CHECK(choose(chooser, num_tokens).size() >= 2);
    }
  }
}

TEST_CASE("plan choice: weights with gaps between rows are left to kernels that can read them") {
  const Problem problem = problem_of();
  const CallLayout layout{.w13_pitch = 320, .w2_pitch = 576};
  const TemporaryFolder folder;
  const std::string file = write_table(folder.path(), table_of(problem));  // of portable kernels
  std::string notes;
  const auto choices = choose(PlanChooser(kGpu, problem, layout, {file}), 8, &notes);
  CHECK(notes.find("portable reads weights without gaps") != std::string::npos);
  REQUIRE_FALSE(choices.empty());
  for (const PlanChoice& choice : choices) {
    CHECK(choice.step == ChoiceStep::model);
    for (const Step& step : choice.plan.steps) CHECK(step.variant != "portable");
  }
  // There is no such kernel for an A100.
  CHECK(choose(PlanChooser(known_gpu("a100"), problem, layout, {}), 8).empty());
}

TEST_CASE("plan choice: the tables that are built in serve their models") {
  Problem problem;
  problem.shape = {"any name", 8, 2, 4096, 14336};
  const PlanChooser chooser(kGpu, problem, {}, {});
  const auto choices = choose(chooser, 128);
  REQUIRE_FALSE(choices.empty());
  CHECK(choices[0].step == ChoiceStep::exact);
  CHECK(choices[0].table.starts_with("built-in: tuned/NVIDIA_H200/E=8,N=14336"));
}

TEST_CASE("plan choice: text and JSON say table, step, plan and notes") {
  Problem problem;
  problem.shape = {"any name", 8, 2, 4096, 14336};
  ChoiceReport report;
  report.num_tokens = 130;
  report.choice = choose(PlanChooser(kGpu, problem, {}, {}), 130).at(0);
  report.notes = {"a note"};
  const std::string text = choice_text(kGpu, problem, report);
  CHECK(text.find("nearest: the entry for 128 tokens") != std::string::npos);
  CHECK(text.find("note   a note") != std::string::npos);
  const auto json = choice_json(kGpu, problem, report);
  CHECK(json.at("step") == "nearest");
  CHECK(json.at("key") == 128);
  CHECK(json.at("plan").size() > 0);
  CHECK(json.at("notes").at(0) == "a note");
}
