#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <filesystem>
#include <memory>
#include <optional>

#include "cli/command.hpp"
#include "core/error.hpp"
#include "core/text.hpp"
#include "report/html_page.hpp"
#include "report/markdown.hpp"
#include "report/pareto.hpp"
#include "table/table.hpp"
#include "tune/journal.hpp"

namespace moetune {
namespace {

namespace fs = std::filesystem;

struct ReportOptions {
  std::string journal;
  std::string table;
  std::string out;
  std::string pareto;  // empty: the default, where there is one
  bool markdown = false;
};

// OUT/results/GPU/NAME.jsonl lies beside OUT/configs/tuned/GPU/NAME.json.
std::string table_beside(const fs::path& journal) {
  const fs::path gpu = fs::absolute(journal).lexically_normal().parent_path();
  if (gpu.parent_path().filename() != "results") return "";
  std::string stem = journal.stem().string();
  if (stem.ends_with(".offline")) stem.resize(stem.rfind('.'));
  const fs::path path =
      gpu.parent_path().parent_path() / "configs" / "tuned" / gpu.filename() / (stem + ".json");
  return fs::exists(path) ? path.string() : "";
}

SearchRecord read_record(const std::string& path) {
  JournalContents contents = read_journal(path);
  for (const std::string& warning : contents.warnings) spdlog::warn("{}", warning);
  if (contents.header.is_null()) {
    throw Error(ErrorKind::input, path + ": the journal is empty; search first");
  }
  SearchRecord record{std::move(contents.header), {}, std::move(contents.others)};
  record.trials.reserve(contents.trials.size());
  for (JournalTrial& trial : contents.trials) {
    record.trials.push_back({std::move(trial.trial), trial.elapsed_s});
  }
  return record;
}

ReportData read_data(const ReportOptions& options) {
  const SearchRecord record = read_record(options.journal);
  if (!options.table.empty()) return gather(record, read_table(options.table));
  if (const std::string path = table_beside(options.journal); !path.empty()) {
    try {
      return gather(record, read_table(path));
    } catch (const Error& error) {
      spdlog::warn("{} is not used, the journal's own entries are: {}", path, error.what());
    }
  }
  return gather(record, std::nullopt);
}

int write_report(const ReportOptions& options) {
  ReportData data = read_data(options);
  if (!options.pareto.empty()) {
    data.pareto = parse_objectives(options.pareto);
    const auto [first, second] = data.pareto;
    if (pareto_fronts(data.trials, first, second).empty()) {
      throw Error(ErrorKind::input,
                  fmt::format("{}: no layer has both {} and {}; errors need a search on a GPU, "
                              "energy one with --objective energy",
                              options.journal, to_string(first), to_string(second)));
    }
  }
  if (options.markdown) fmt::print("{}", markdown(data));
  if (options.markdown && options.out.empty()) return 0;
  const std::string out = options.out.empty()
                              ? fs::path(options.journal).replace_extension(".html").string()
                              : options.out;
  write_file_atomically(out, html_page(data));
  spdlog::info("wrote {}", out);
  return 0;
}

}  // namespace

void add_report(CLI::App& app, Run& run) {
  CLI::App* command =
      app.add_subcommand("report", "Make an HTML page or a Markdown summary of a search");
  const auto options = std::make_shared<ReportOptions>();
  command->add_option("journal", options->journal, "The search's journal")
      ->required()
      ->type_name("JOURNAL");
  command
      ->add_option("--table", options->table,
                   "The table with the entries; when left out, the one that search wrote beside "
                   "the journal, else the journal's own entries")
      ->type_name("FILE");
  command
      ->add_option("--out", options->out,
                   "The page; when left out, the journal's name with .html, or none with "
                   "--markdown")
      ->type_name("FILE.html");
  command
      ->add_option("--pareto", options->pareto,
                   "Two of time, error, energy, memory: shows the layers that no other beats in "
                   "both; when left out, time,error")
      ->type_name("A,B");
  command->add_flag("--markdown", options->markdown, "Print a summary for a CI page to stdout");
  command->footer(R"(
Example:
  moe-tune report results/NVIDIA_H200/*topk=8*.jsonl --out report.html

The page is one file that needs no network. Exit codes: 0 good, 2 a file that is none or cannot be
written.)");
  command->callback([&run, options] { run = [options] { return write_report(*options); }; });
}

}  // namespace moetune
