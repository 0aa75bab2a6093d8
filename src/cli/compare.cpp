#include <fmt/format.h>

#include <memory>

#include "cli/command.hpp"
#include "core/error.hpp"
#include "tune/compare_tables.hpp"

namespace moetune {
namespace {

struct CompareOptions {
  std::string first;
  std::string second;
  bool json = false;
};

TableComparison compare_files(const CompareOptions& options) {
  const Table first = read_table(options.first);
  const Table second = read_table(options.second);
  try {
    return compare_tables(first, second);
  } catch (const Error& error) {
    throw Error(error.kind(),
                fmt::format("{} and {}: {}", options.first, options.second, error.what()));
  }
}

int compare(const CompareOptions& options) {
  const TableComparison comparison = compare_files(options);
  if (options.json) {
    fmt::print("{}\n", comparison_json(comparison).dump(2));
  } else {
    fmt::print("{}", comparison_text(comparison));
  }
  return comparison.share() >= kReproducible ? 0 : exit_code(ErrorKind::failed);
}

}  // namespace

void add_compare(CLI::App& app, Run& run) {
  CLI::App* command =
      app.add_subcommand("compare", "Say whether two tunings of the same layer agree");
  const auto options = std::make_shared<CompareOptions>();
  command->add_option("first", options->first, "A table")->required()->type_name("TABLE");
  command->add_option("second", options->second, "Another search's table of the same layer and GPU")
      ->required()
      ->type_name("TABLE");
  command->add_flag("--json", options->json, "Print JSON instead of text");
  command->footer(
      "Example:\n"
      "  moe-tune compare one/configs/tuned/NVIDIA_H200/NAME.json "
      "two/configs/tuned/NVIDIA_H200/NAME.json\n\n"
      "Entries agree when they hold the same plan; when some plan is, in both tables, the winner "
      "or\n"
      "one that the table declares its tie (which holds however clocks drift between the "
      "searches);\n"
      "or when the winners' times are within the tie band: 1 %, or 2 % and inside the other's p10\n"
      "to p90.\n"
      "Exit codes: 0 at least 95 % agree, 1 fewer do, 2 tables that cannot be compared.");
  command->callback([&run, options] { run = [options] { return compare(*options); }; });
}

}  // namespace moetune
