#include <fmt/format.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "cli/command.hpp"
#include "cli/problem_options.hpp"
#include "core/error.hpp"
#include "kernels/variant.hpp"
#include "report/summary.hpp"
#include "report/text_table.hpp"
#include "search/legal_points.hpp"

namespace moetune {
namespace {

struct SpaceOptions {
  ProblemOptions problem;
  std::int64_t num_tokens = 64;
  std::string stage;  // empty: both
  std::string device = "auto";
  std::string fp8;  // empty: what the dtype implies
  bool json = false;
};

struct Shown {
  const Variant* variant;
  Stage stage;
  SearchSpace space;
  LegalPoints legal;
};

std::vector<Stage> stages_of(const std::string& text) {
  if (text.empty()) return {Stage::gemm1, Stage::gemm2};
  if (text == "gemm1") return {Stage::gemm1};
  if (text == "gemm2") return {Stage::gemm2};
  throw Error(ErrorKind::usage, fmt::format("unknown stage '{}'; use gemm1 or gemm2", text));
}

nlohmann::ordered_json space_json(const Shown& shown) {
  using Json = nlohmann::ordered_json;
  Json parameters = Json::array();
  for (const Parameter& parameter : shown.space.parameters) {
    parameters.push_back({{"name", parameter.name},
                          {"values", parameter.values},
                          {"reference", parameter.reference},
                          {"help", parameter.help}});
  }
  Json rejected = Json::object();
  for (const auto& [rule, points] : shown.legal.rejected)
    rejected[rule] = {{"count", points.count}, {"example", points.example}};
  return {{"variant", shown.variant->name()},
          {"stage", to_string(shown.stage)},
          {"parameters", parameters},
          {"num_points", shown.space.size()},
          {"num_legal", shown.legal.points.size()},
          {"rejected", rejected}};
}

std::string space_text(const Shown& shown) {
  TextTable table({"<parameter", "<values", "reference", "<meaning"});
  for (const Parameter& parameter : shown.space.parameters) {
    table.add({parameter.name, fmt::format("{}", fmt::join(parameter.values, ",")),
               std::to_string(parameter.reference), parameter.help});
  }
  return fmt::format("{} of the {} kernel: {} points, {} legal\n\n{}\nRejected by rule:\n{}",
                     to_string(shown.stage), shown.variant->name(), shown.space.size(),
                     shown.legal.points.size(), table.text(), rejected_text(shown.legal.rejected));
}

int show_space(const SpaceOptions& options) {
  const Problem problem = options.problem.make(options.num_tokens);
  const std::vector<Stage> stages = stages_of(options.stage);
  const Fp8Mode fp8 =
      options.fp8.empty() ? default_fp8_mode(problem.dtype) : parse_fp8_mode(options.fp8);
  const Gpu gpu = choose_device(options.device).gpu;
  auto json = nlohmann::ordered_json::array();
  std::string text;
  for (const auto& variant : variants()) {
    if (!variant->supports(gpu, problem.dtype)) continue;
    for (const Stage stage : stages) {
      Shown shown{variant.get(), stage, variant->space(gpu, problem, stage, fp8), {}};
      shown.legal = enumerate(shown.space);
      json.push_back(space_json(shown));
      text += (text.empty() ? "" : "\n") + space_text(shown);
    }
  }
  if (json.empty()) {
    throw Error(ErrorKind::device, fmt::format("no kernel runs {} on {}; use --dtype bf16 or "
                                               "another --device",
                                               to_string(problem.dtype), gpu.name));
  }
  if (options.json) {
    fmt::print("{}\n", json.dump(2));
  } else {
    fmt::print("{} {}, {} tokens, {}\n\n{}", problem.shape.model, to_string(problem.dtype),
               problem.num_tokens, gpu.name, text);
  }
  return 0;
}

}  // namespace

void add_space(CLI::App& app, Run& run) {
  CLI::App* command =
      app.add_subcommand("space", "Show a search space: parameters, rules, legal points");
  command->footer(
      "Example:\n  moe-tune space --model qwen3-30b-a3b --dtype fp8_block --tokens 64 --stage "
      "gemm1\n\nThe reference column is the point that speedups are measured against.");
  auto options = std::make_shared<SpaceOptions>();
  options->problem.add_to(*command);
  command->add_option("--tokens", options->num_tokens, "Tokens in the batch")
      ->capture_default_str()
      ->check(integer_from(1));
  command->add_option("--stage", options->stage, "gemm1 or gemm2; both when left out");
  command->add_option("--fp8", options->fp8,
                      "off, on or both; when left out, what --dtype implies");
  command->add_option("--device", options->device, "auto, a number, a name or offline:NAME")
      ->capture_default_str();
  command->add_flag("--json", options->json, "Print JSON");
  command->callback([&run, options] { run = [options] { return show_space(*options); }; });
}

}  // namespace moetune
