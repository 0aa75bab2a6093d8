#include <fmt/format.h>
#include <fmt/ranges.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <charconv>
#include <iostream>
#include <memory>
#include <optional>

#include "cli/cache_dir.hpp"
#include "cli/children.hpp"
#include "cli/command.hpp"
#include "cli/interrupt.hpp"
#include "cli/outputs.hpp"
#include "cli/problem_options.hpp"
#include "core/child_process.hpp"
#include "core/error.hpp"
#include "core/text.hpp"
#include "jit/compiler.hpp"
#include "report/fp8_effect.hpp"
#include "report/progress.hpp"
#include "report/summary.hpp"
#include "search/strategy.hpp"
#include "tune/session.hpp"
#include "tune/session_records.hpp"
#include "tune/worker_evaluator.hpp"

namespace moetune {
namespace {

using Json = nlohmann::ordered_json;

struct SearchOptions {
  ProblemOptions problem;
  std::string strategy;  // empty: what the short forms below say
  bool guided = false;
  bool grid = false;
  std::uint64_t num_random = 0;
  bool ablation = false;
  std::string start;
  std::vector<std::int64_t> token_counts = default_token_counts();
  std::string fp8;  // empty: what the dtype implies
  std::string budget;
  std::string variant;
  std::size_t num_finalists = 8;
  std::string objective = "time";
  bool deterministic = false;
  std::string device = "auto";
  ChildrenOptions children;
  std::string out_dir = ".";
  std::string records_dir = "results";
  std::string cache_dir = default_cache_dir();
  int num_jobs = 0;
  bool resume = false;
  bool json = false;
};

// "NAME=VALUE,...": what it leaves out keeps the reference point's value.
Point parse_point(const std::string& text) {
  Point point;
  for (std::size_t at = 0; at <= text.size();) {
    const std::size_t end = std::min(text.find(',', at), text.size());
    const std::string part = text.substr(at, end - at);
    const std::size_t equals = part.find('=');
    const char* first = part.data() + (equals == std::string::npos ? part.size() : equals + 1);
    int value = 0;
    const auto [rest, error] = std::from_chars(first, part.data() + part.size(), value);
    if (equals == 0 || error != std::errc() || rest != part.data() + part.size()) {
      throw Error(ErrorKind::usage,
                  fmt::format("--start: '{}' is not NAME=VALUE; give `table`, a table's path, or "
                              "for example BLOCK_SIZE_M=64,NUM_WARPS=8",
                              part));
    }
    point.set(part.substr(0, equals), value);
    at = end + 1;
  }
  return point;
}

std::string strategy_name(const SearchOptions& options) {
  if (options.ablation) return "ablation";
  if (options.num_random > 0) return "random";
  if (options.guided) return "guided";
  if (options.grid || options.strategy.empty()) return "grid";
  if (options.strategy == "random") {
    throw Error(ErrorKind::usage, "--strategy random: say how many points with --random N");
  }
  // Throws for a name that does not exist, and names the nearest.
  make_strategy(options.strategy, {}, {}, {});
  return options.strategy;
}

Fp8Mode fp8_mode(const SearchOptions& options, Dtype dtype) {
  return options.fp8.empty() ? default_fp8_mode(dtype) : parse_fp8_mode(options.fp8);
}

SearchSettings make_settings(const SearchOptions& options, const Problem& problem, const Gpu& gpu,
                             const OutputPaths& paths) {
  SearchSettings settings;
  settings.strategy = strategy_name(options);
  settings.num_random = options.num_random;
  if (!options.start.empty() && settings.strategy != "ablation") {
    throw Error(ErrorKind::usage, "--start says where --ablation starts; add --ablation");
  }
  settings.token_counts = options.token_counts;
  settings.num_finalists = options.num_finalists;
  settings.objective = parse_objective(options.objective);
  settings.deterministic = options.deterministic;
  settings.fp8 = fp8_mode(options, problem.dtype);
  if (!options.budget.empty()) settings.budget = parse_budget(options.budget);
  if (const std::uint64_t num_trials = settings.budget.num_trials; num_trials > 0) {
    spdlog::info("budget: {} trials, about {} for each GEMM and token count; a time is written {}s",
                 num_trials, num_trials / (2 * settings.token_counts.size()), num_trials);
  }
  if (options.start == "table" || options.start.ends_with(".json")) {
    settings.start_table = read_table(options.start == "table" ? paths.table : options.start);
  } else if (!options.start.empty()) {
    settings.start = parse_point(options.start);
  }
  if (!options.variant.empty()) find_variant(options.variant);
  for (const auto& variant : variants()) {
    if (!options.variant.empty() && variant->name() != options.variant) continue;
    if (variant->supports(gpu, problem.dtype)) settings.variants.push_back(variant.get());
  }
  if (settings.variants.empty()) {
    throw Error(ErrorKind::device,
                fmt::format("no kernel {}runs {} on {}; use --dtype bf16 or another --device",
                            options.variant.empty() ? "" : "named " + options.variant + " ",
                            to_string(problem.dtype), gpu.name));
  }
  return settings;
}

class ProgressListener final : public SearchListener {
 public:
  explicit ProgressListener(bool quiet) : progress_(progress_mode(quiet), std::cerr) {}
  void note(const std::string& text) override {
    progress_.clear();
    spdlog::warn("{}", text);
  }
  void stage_started(Stage stage, std::int64_t num_tokens, std::uint64_t num_expected) override {
    if (num_expected > 0) progress_.expect(num_expected);
    progress_.begin(stage, num_tokens);
  }
  void points_rejected(const std::map<std::string, RejectedRule>& rejected) override {
    std::uint64_t num_points = 0;
    for (const auto& [rule, of_rule] : rejected) num_points += of_rule.count;
    progress_.add_rejected(num_points);
  }
  void trial_ended(const Trial& trial, bool resumed) override { progress_.update(trial, resumed); }
  void entry_chosen(std::int64_t num_tokens, const TableEntry& entry) override {
    progress_.clear();
    spdlog::info("{} token{}: layer {}, {} against the reference point{}", num_tokens,
                 num_tokens == 1 ? "" : "s", time_text(entry.timing.median_us, entry.source, " us"),
                 speedup_text(entry.speedup), entry.ties.empty() ? "" : ", a tie");
  }
  void finish() { progress_.finish(); }

 private:
  Progress progress_;
};

void print_result(const SearchResult& result, const SearchSettings& settings,
                  const SearchSummary& summary, const OutputPaths& paths, bool offline,
                  bool as_json) {
  const auto effects =
      settings.fp8 == Fp8Mode::both ? fp8_effects(result.trials) : std::vector<Fp8Effect>();
  if (as_json) {
    Json json = summary_json(summary);
    json["interrupted"] = result.interrupted;
    json["missing"] = result.missing;
    json["table"] = result.table_path.empty() ? Json(nullptr) : Json(result.table_path);
    json["journal"] = paths.journal;
    json["num_resumed"] = result.num_resumed;
    json.update(run_figures(result));
    if (!effects.empty()) json["fp8_effect"] = fp8_json(effects);
    for (const Sensitivity& one : result.sensitivities) {
      json["sensitivity"].push_back(sensitivity_json(one));
    }
    fmt::print("{}\n", json.dump(2, ' ', false, Json::error_handler_t::replace));
    return;
  }
  fmt::print("{}", summary_text(summary));
  if (!effects.empty()) fmt::print("\n{}", fp8_text(effects));
  for (const Sensitivity& one : result.sensitivities) fmt::print("\n{}", sensitivity_text(one));
  fmt::print("\n{}", run_text(result, offline));
  if (!result.table_path.empty()) fmt::print("table   {}\n", result.table_path);
  fmt::print("journal {}\n", paths.journal);
}

int run_search(const SearchOptions& options) {
  const InterruptWatch interrupts;  // before the CUDA driver makes threads
  // Checked before anything is opened or compiled: what is wrong should show at once.
  const Problem problem = options.problem.make(options.token_counts.back());
  const Objective objective = parse_objective(options.objective);
  const EvaluatorOptions evaluator_options{
      .cache_dir = options.cache_dir,
      .records_dir = options.records_dir,
      .num_threads = options.num_jobs,
      .program = kOwnProgram,
      .with_fp8 = fp8_mode(options, problem.dtype) != Fp8Mode::off,
      .with_energy = objective == Objective::energy};
  // Which GPUs a launcher gives only its children know.
  std::unique_ptr<Evaluator> evaluator =
      launch_children(options.children, problem, evaluator_options);
  const std::vector<DeviceChoice> devices =
      evaluator ? std::vector{DeviceChoice{0, evaluator->gpu()}} : choose_devices(options.device);
  const DeviceChoice& device = devices.front();
  if (device.gpu.offline && (objective == Objective::error || objective == Objective::energy)) {
    throw Error(ErrorKind::device,
                fmt::format("--objective {} needs a GPU, offline only time and memory are known",
                            to_string(objective)));
  }
  Table table;
  table.identity = {device.gpu.name,   arch_name(device.gpu),
                    device.gpu.driver, evaluator ? evaluator->nvrtc_version() : nvrtc_version(),
                    kernel_hashes(),   problem.shape,
                    problem.dtype};
  table.created = utc_now();
  table.command = command_line();
  table.routing = problem.routing;
  table.seed = problem.seed;
  const OutputPaths paths = choose_outputs(options.out_dir, table.identity, device.gpu);
  const SearchSettings settings = make_settings(options, problem, device.gpu, paths);
  const Json identity = journal_identity(table.identity, problem, settings);

  std::optional<Journal> journal;
  const auto open_journal = [&] {
    journal.emplace(paths.journal, identity, table.command, options.resume);
    for (const std::string& note : journal->notes()) spdlog::warn("{}", note);
  };
  // A journal of another search is refused before the slow part; one that would be set aside is
  // left alone until the device is known to work.
  if (options.resume) open_journal();
  if (!evaluator) {
    evaluator = device.ordinal < 0 ? make_offline_evaluator(device.gpu, problem, evaluator_options)
                                   : make_local_children(devices, problem, evaluator_options);
  }
  if (!journal) open_journal();

  ProgressListener listener(!spdlog::should_log(spdlog::level::info));
  const SearchResult result = search(
      *evaluator, problem, settings, table, paths.table_dir, *journal,
      [&interrupts] { return interrupts.requested(); }, listener);
  listener.finish();
  const SearchSummary summary =
      summarise(result.table, result.trials, reference_plan(device.gpu, problem), result.rejected);
  print_result(result, settings, summary, paths, evaluator->gpu().offline, options.json);
  if (result.interrupted) {
    spdlog::warn(
        "interrupted with {} of {} token counts done; the same command with --resume "
        "goes on",
        result.table.entries.size(), settings.token_counts.size());
    return 130;
  }
  return result.missing.empty() ? 0 : exit_code(ErrorKind::failed);
}

}  // namespace

void add_search(CLI::App& app, Run& run) {
  CLI::App* command = app.add_subcommand("search", "Find the best points and write a table");
  command->footer(R"(Examples:
  moe-tune search --grid --model qwen3-30b-a3b --dtype fp8_block
  moe-tune search --guided --model deepseek-v3 --tp 8 --dtype fp8_block --budget 2m
  moe-tune search --random 200 --shape 8,2,4096,14336 --tokens 1,64,1024 --budget 10m
  moe-tune search --ablation --start table --model mixtral-8x7b --tokens 64

The table goes to OUT/configs/tuned/<GPU>/, a journal of every trial to OUT/results/<GPU>/. Ctrl-C
ends the search cleanly (exit code 130); --resume goes on with the journal, also after a kill.)");
  auto options = std::make_shared<SearchOptions>();
  options->problem.add_to(*command);
  const std::string strategy = "Strategy";
  auto* guided =
      command->add_flag("--guided", options->guided, "A model's order, corrected as times come in")
          ->group(strategy);
  auto* grid = command->add_flag("--grid", options->grid, "Every legal point (default)")
                   ->excludes(guided)
                   ->group(strategy);
  auto* random = command
                     ->add_option("--random", options->num_random,
                                  "N legal points for each GEMM and token count")
                     ->type_name("N")
                     ->check(integer_from(1))
                     ->excludes(guided)
                     ->excludes(grid)
                     ->group(strategy);
  auto* ablation = command
                       ->add_flag("--ablation", options->ablation,
                                  "One parameter at a time around a point, and what each does")
                       ->excludes(guided)
                       ->excludes(grid)
                       ->excludes(random)
                       ->group(strategy);
  command
      ->add_option("--strategy", options->strategy,
                   fmt::format("Any of {}, by its name", fmt::join(strategy_names(), ", ")))
      ->type_name("NAME")
      ->excludes(guided)
      ->excludes(grid)
      ->excludes(random)
      ->excludes(ablation)
      ->group(strategy);
  command
      ->add_option("--start", options->start,
                   "Where --ablation starts: NAME=VALUE,..., `table` for the best known, or a "
                   "table's path; the reference point when left out")
      ->type_name("POINT")
      ->group(strategy);
  command
      ->add_option("--budget", options->budget,
                   "A time (90s, 10m, 1.5h) or a number of trials, shared evenly by the token "
                   "counts; no limit when left out")
      ->type_name("TIME|N")
      ->group(strategy);
  command->add_option("--variant", options->variant, "Only this kernel; all when left out")
      ->type_name("NAME")
      ->group(strategy);
  command
      ->add_option("--finalists", options->num_finalists,
                   "Points of a GEMM that are measured again thoroughly")
      ->capture_default_str()
      ->type_name("N")
      ->check(integer_from(1))
      ->group(strategy);
  command
      ->add_option(
          "--objective", options->objective,
          "What to make small: time; error, against bf16; energy of a call, which NVML must "
          "tell; memory, the bytes of intermediate results. Of what is equal within 1 % the "
          "fastest wins")
      ->capture_default_str()
      ->type_name("WHAT")
      ->group(strategy);
  command
      ->add_flag("--deterministic", options->deterministic,
                 "Only points whose calls give the same bits each time: none that adds rows in no "
                 "fixed order (FUSE_COMBINE 1)")
      ->group(strategy);
  add_token_counts(*command, options->token_counts);
  command->add_option("--fp8", options->fp8,
                      "off, on, or both to make it a searched axis and report its effect; when "
                      "left out, what --dtype implies");
  auto* device =
      command
          ->add_option("--device", options->device, "auto, a number, a name, all, or offline:NAME")
          ->capture_default_str();
  options->children.add_to(*command, *device);
  command->add_option("--out", options->out_dir, "Where tables and journals go")
      ->capture_default_str()
      ->type_name("DIR");
  command->add_option("--records", options->records_dir, "Offline: journals with measured times")
      ->capture_default_str()
      ->type_name("DIR");
  command->add_option("--cache", options->cache_dir, "Compiled kernels are kept here")
      ->capture_default_str()
      ->type_name("DIR");
  command->add_option("--jobs", options->num_jobs, "Compilations at a time; 0: one a core")
      ->capture_default_str()
      ->type_name("N")
      ->check(integer_from(0));
  command->add_flag("--resume", options->resume,
                    "Go on with the journal; otherwise an earlier one is kept as .bak-N");
  command->add_flag("--json", options->json, "Print JSON");
  command->callback([&run, options] { run = [options] { return run_search(*options); }; });
}

}  // namespace moetune
