// `moe-tune bench --journey`: seven levels of the same layer.
#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <vector>

#include "bench/journey.hpp"
#include "cli/bench_modes.hpp"
#include "core/error.hpp"
#include "core/text.hpp"
#include "report/bench_record.hpp"
#include "report/row_record.hpp"

namespace moetune {

void add_journey_options(CLI::App& command, JourneyModeOptions& options) {
  const std::string group = "Journey";
  auto* mode =
      command
          .add_flag("--journey", options.chosen,
                    "Seven levels of the layer, from a loop over experts and tokens to the tuned "
                    "kernels; bf16, on a GPU")
          ->group(group);
  command
      .add_option("--memory-limit", options.memory_limit_gb,
                  "GB that levels 1 and 2 may gather weights in; more is done in parts")
      ->capture_default_str()
      ->check(CLI::PositiveNumber)
      ->type_name("GB")
      ->needs(mode)
      ->group(group);
  command
      .add_option(
          "--level-budget", options.budget_s,
          "Seconds to time one slow level: fewer samples, of single calls, but at least one")
      ->capture_default_str()
      ->check(CLI::PositiveNumber)
      ->type_name("S")
      ->needs(mode)
      ->group(group);
  command.add_option("--figure", options.figure, "Write the speedups, level by level, as an SVG")
      ->type_name("FILE")
      ->needs(mode)
      ->group(group);
}

int bench_journey(const BenchOptions& options) {
  if (parse_dtype(options.problem.dtype) != Dtype::bf16) {
    throw Error(ErrorKind::usage,
                "--journey: levels 0 to 5 are bf16 and all levels compute the same; leave out "
                "--dtype");
  }
  const DeviceChoice device = choose_real_device(options, "--journey");
  const std::vector<BenchLayer> layers = choose_layers(options, device.gpu);
  const BenchRun run = make_run(options, device.gpu, layers.front().problem);
  if (!options.out.empty()) {
    read_rows(options.out, run, "journey");
    check_record_place(options.out);
  }
  if (!options.journey.figure.empty()) check_record_place(options.journey.figure);

  std::vector<JourneyRow> rows;
  for (const BenchLayer& layer : layers) {
    Journey journey(
        device.gpu, layer.problem,
        {options.cache_dir, options.journey.memory_limit_gb * 1e9, options.journey.budget_s});
    for (const ChosenPlan& chosen : layer.plans) {
      JourneyRow row{layer.name, layer.problem, chosen.lookup, chosen.plan, {}};
      row.problem.num_tokens = chosen.num_tokens;
      journey.run(row, chosen.defect);
      rows.push_back(row);
      if (!options.out.empty())
        update_rows(options.out, run, journey_row_json(run, row),
                    {"model", "dtype", "num_tokens", "routing"});
    }
  }
  if (options.json) {
    print_json(journey_json(run, rows));
  } else {
    fmt::print("{}", journey_text(run, rows));
  }
  if (!options.journey.figure.empty())
    write_file_atomically(options.journey.figure, journey_svg(run, rows));
  const bool failed = std::any_of(rows.begin(), rows.end(), [](const JourneyRow& row) {
    return std::any_of(row.levels.begin(), row.levels.end(), [](const JourneyLevel& level) {
      return level.status == LevelStatus::failed;
    });
  });
  return failed ? exit_code(ErrorKind::failed) : 0;
}

}  // namespace moetune
