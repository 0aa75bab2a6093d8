#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <memory>
#include <string>
#include <vector>

#include "cli/command.hpp"
#include "core/error.hpp"
#include "core/text.hpp"
#include "report/replay_summary.hpp"
#include "search/strategy.hpp"
#include "tune/recording.hpp"
#include "tune/replay.hpp"
#include "tune/t4.hpp"

namespace moetune {
namespace {

struct ReplayOptions {
  std::vector<std::string> journals;
  std::vector<std::string> strategies{"all"};
  std::uint64_t num_seeds = 30;
  bool json = false;
  std::string out;
  std::string t4;
  std::string svg;
};

int run_replay(const ReplayOptions& options) {
  std::vector<std::string> strategies = options.strategies;
  if (strategies == std::vector<std::string>{"all"}) {
    const auto names = strategy_names();
    strategies.assign(names.begin(), names.end());
  }
  for (const std::string& name : strategies) make_strategy(name, {}, {}, {.count = 1});
  if (!options.t4.empty()) {
    if (options.journals.size() != 1) {
      throw Error(ErrorKind::usage, "--t4 exports one journal; give one");
    }
    write_file_atomically(options.t4,
                          t4_json(read_journal(options.journals.front())).dump(1) + "\n");
  }
  std::vector<JournalReplay> replays;
  for (const std::string& path : options.journals) {
    const Recording recording = read_recording(path);
    for (const std::string& warning : recording.warnings) spdlog::warn("{}", warning);
    spdlog::info("{}: {} stages and token counts", path, recording.entries.size());
    replays.push_back(replay_all(recording, strategies, options.num_seeds));
  }
  const std::string json = replay_json(replays).dump(1) + "\n";
  if (!options.out.empty()) write_file_atomically(options.out, json);
  if (!options.svg.empty()) write_file_atomically(options.svg, replay_svg(replays));
  fmt::print("{}", options.json ? json : replay_text(replays));
  return 0;
}

}  // namespace

void add_replay(CLI::App& app, Run& run) {
  CLI::App* command =
      app.add_subcommand("replay", "Run search strategies on recorded searches, without a GPU");
  command->footer(R"(Examples:
  moe-tune replay results/NVIDIA_H200/grids/*.jsonl.gz --out replay.json --svg replay.svg
  moe-tune replay JOURNAL.jsonl.gz --strategy guided,random --seeds 100
  moe-tune replay JOURNAL.jsonl.gz --strategy grid --seeds 1 --t4 t4-results.json

A journal of `moe-tune search --grid` is the truth: points that it does not hold do not exist.)");
  auto options = std::make_shared<ReplayOptions>();
  command->add_option("journals", options->journals, "Journals, .jsonl or .jsonl.gz")
      ->required()
      ->type_name("JOURNAL");
  command->add_option("--strategy", options->strategies, "all, or names separated by commas")
      ->delimiter(',')
      ->capture_default_str()
      ->type_name("NAME,...");
  command->add_option("--seeds", options->num_seeds, "Seeds 0..N-1")
      ->capture_default_str()
      ->type_name("N")
      ->check(CLI::Range(1, 100000));
  command->add_flag("--json", options->json, "Print JSON");
  command->add_option("--out", options->out, "Write the JSON here as well")->type_name("FILE");
  command->add_option("--svg", options->svg, "Write a plot of the convergence")->type_name("FILE");
  command
      ->add_option("--t4", options->t4,
                   "Export the journal in the T4 results format of the autotuning community")
      ->type_name("FILE");
  command->callback([&run, options] { run = [options] { return run_replay(*options); }; });
}

}  // namespace moetune
