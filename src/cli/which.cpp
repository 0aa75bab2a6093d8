// `moe-tune which`: the table, the entry and the plan that a call of libmoetune would take, and
// why.
#include <fmt/format.h>

#include <memory>

#include "cli/command.hpp"
#include "cli/problem_options.hpp"
#include "core/error.hpp"
#include "runtime/plan_choice.hpp"

namespace moetune {
namespace {

struct WhichOptions {
  ProblemOptions problem;
  std::vector<std::int64_t> token_counts = default_token_counts();
  std::vector<std::string> tables;
  std::string device = "auto";
  bool json = false;
};

int which(const WhichOptions& options) {
  const Gpu gpu = choose_device(options.device).gpu;
  const Problem problem = options.problem.make(options.token_counts.back());
  const PlanChooser chooser(gpu, problem, {}, options.tables);
  auto json = nlohmann::ordered_json::array();
  std::string text;
  bool all_served = true;
  for (const std::int64_t num_tokens : options.token_counts) {
    ChoiceReport report;
    report.num_tokens = num_tokens;
    const std::vector<PlanChoice> choices = chooser.choose(num_tokens, report.notes);
    if (!choices.empty()) report.choice = choices.front();
    all_served = all_served && !choices.empty();
    json.push_back(choice_json(gpu, problem, report));
    text += (text.empty() ? "" : "\n") + choice_text(gpu, problem, report);
  }
  if (options.json) {
    fmt::print("{}\n", json.dump(2));
  } else {
    fmt::print("{}", text);
  }
  return all_served ? 0 : exit_code(ErrorKind::failed);
}

}  // namespace

void add_which(CLI::App& app, Run& run) {
  CLI::App* command = app.add_subcommand(
      "which", "Show the table, the entry and the plan that a call of the library takes");
  command->footer(
      "Examples:\n"
      "  moe-tune which --model qwen3-30b-a3b --dtype fp8_block --tokens 1,100\n"
      "  moe-tune which --model mixtral-8x7b --tp 2 --tokens 64 --tables my-tables --json\n\n"
      "Exit code 0: a plan for every count; 1: no kernel here runs the layer.");
  auto options = std::make_shared<WhichOptions>();
  options->problem.add_to(*command);
  add_token_counts(*command, options->token_counts);
  command
      ->add_option("--tables", options->tables,
                   "Tables, or folders of them, that come before the built-in ones")
      ->type_name("PATH,...")
      ->delimiter(',');
  command->add_option("--device", options->device, "auto, a number, a name or offline:NAME")
      ->capture_default_str();
  command->add_flag("--json", options->json, "Print JSON");
  command->callback([&run, options] { run = [options] { return which(*options); }; });
}

}  // namespace moetune
