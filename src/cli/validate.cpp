#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

#include "cli/cache_dir.hpp"
#include "cli/command.hpp"
#include "cli/problem_options.hpp"
#include "core/error.hpp"
#include "core/text.hpp"
#include "jit/compiler.hpp"
#include "report/validation.hpp"
#include "table/table.hpp"
#include "table/validate.hpp"
#include "tune/worker_evaluator.hpp"

namespace moetune {
namespace {

struct ValidateOptions {
  std::vector<std::string> files;
  std::string device = "auto";
  std::vector<std::int64_t> tokens = default_token_counts();
  double max_regression_pct = 10;
  bool static_only = false;
  bool json = false;
  std::string junit;
  std::string cache_dir = default_cache_dir();
};

// Said before minutes of measuring, not after.
void check_writable_place(const std::string& path) {
  if (path.empty()) return;
  const std::filesystem::path parent = std::filesystem::absolute(path).parent_path();
  std::error_code ignored;
  if (!std::filesystem::is_directory(parent, ignored)) {
    throw Error(ErrorKind::io, fmt::format("cannot write {}: {} is not a directory; make it first",
                                           path, parent.string()));
  }
}

std::string compiler_version() {
  try {
    return nvrtc_version();
  } catch (const Error& error) {
    spdlog::warn("the tables' compiler is not compared: {}", error.what());
    return "";
  }
}

void check_on(const DeviceChoice& device, const ValidateOptions& options, const Table& table,
              TableReport& report) {
  if (table.identity.gpu != device.gpu.name) {
    spdlog::warn("{} is for another GPU and is not run", report.path);
    return;
  }
  try {
    EvaluatorOptions evaluator_options;
    evaluator_options.cache_dir = options.cache_dir;
    const auto evaluator =
        make_worker_evaluator(device.ordinal, largest_problem(table), evaluator_options);
    std::size_t num_begun = 0;
    check_on_device(report, table, *evaluator, options.max_regression_pct,
                    [&](const EntryReport& entry) {
                      spdlog::info("{}: entry {} of {}, {} tokens", report.path, ++num_begun,
                                   report.entries.size(), entry.num_tokens);
                    });
  } catch (const Error& error) {
    report.error = error;
  }
}

int exit_code_of(const std::vector<TableReport>& reports) {
  int code = 0;
  for (const TableReport& report : reports) {
    const int own = report.error    ? exit_code(report.error->kind())
                    : report.good() ? 0
                                    : exit_code(ErrorKind::failed);
    code = std::max(code, own);
  }
  return code;
}

int validate(const ValidateOptions& options) {
  if (std::isnan(options.max_regression_pct))  // which no range check refuses
    throw Error(ErrorKind::usage, "--max-regression: nan is no percentage; give 0 to 1000");
  check_writable_place(options.junit);
  const DeviceChoice device = choose_device(options.device);
  const bool has_gpu = !device.gpu.offline;
  const bool use_gpu = has_gpu && !options.static_only;
  Expectation expectation;
  // Without a GPU and without a wish, each table is judged by the GPU that it names.
  if (has_gpu || options.device != "auto") expectation.gpu = device.gpu;
  expectation.nvrtc = compiler_version();
  expectation.kernels = kernel_hashes();
  expectation.token_counts = options.tokens;

  std::vector<TableReport> reports;
  for (const std::string& file : options.files) {
    TableReport report;
    report.path = file;
    try {
      const Table table = read_table(file);
      report = check_table(file, table, expectation);
      if (use_gpu) check_on(device, options, table, report);
    } catch (const Error& error) {
      report.error = error;
    }
    if (!options.json) fmt::print("{}\n", validation_text(report));
    reports.push_back(std::move(report));
  }
  const bool checked = use_gpu && std::any_of(reports.begin(), reports.end(),
                                              [](const auto& r) { return r.checked_on_device; });
  if (options.json) {
    fmt::print("{}\n", validation_json(reports, checked)
                           .dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace));
  } else {
    fmt::print("{}", validation_summary(reports, checked));
  }
  if (!options.junit.empty()) write_file_atomically(options.junit, validation_junit(reports));
  return exit_code_of(reports);
}

}  // namespace

void add_validate(CLI::App& app, Run& run) {
  CLI::App* command = app.add_subcommand(
      "validate",
      "Check best-config tables: form, coverage, identity, legality; on a GPU also "
      "results and times");
  const auto options = std::make_shared<ValidateOptions>();
  command->add_option("files", options->files, "Tables to check")->required()->type_name("FILE...");
  command
      ->add_option("--device", options->device,
                   "auto, a CUDA device number, a GPU's name, or offline:NAME (nothing is run)")
      ->capture_default_str();
  add_token_counts(*command, options->tokens)
      ->description("Token counts that must have entries [default: the grid that search covers]");
  command
      ->add_option("--max-regression", options->max_regression_pct,
                   "Percent by which an entry may be slower than recorded")
      ->check(CLI::Range(0.0, 1000.0))
      ->type_name("PCT")
      ->capture_default_str();
  command->add_flag("--static-only", options->static_only, "Run nothing on the GPU");
  command->add_flag("--json", options->json, "Print JSON instead of text");
  command->add_option("--junit", options->junit, "Also write JUnit XML")->type_name("FILE");
  command->add_option("--cache", options->cache_dir, "Compiled kernels are kept here")
      ->type_name("DIR")
      ->capture_default_str();
  command->footer(
      "Exit codes: 0 good, 1 a table falls short, 2 bad usage or a file that is no table,\n"
      "3 no usable device.");
  command->callback([&run, options] { run = [options] { return validate(*options); }; });
}

}  // namespace moetune
