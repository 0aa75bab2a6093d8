// `moe-tune bench --techniques`: pairs of layers that differ in one thing.
#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "bench/techniques.hpp"
#include "cli/bench_modes.hpp"
#include "core/error.hpp"
#include "report/bench_record.hpp"
#include "report/row_record.hpp"
#include "report/technique_report.hpp"

namespace moetune {
namespace {

// Plans for the fp8 pair: the table's of that dtype, else the reference point.
std::vector<ChosenPlan> choose_fp8_plans(const BenchOptions& options, const Gpu& gpu,
                                         const Problem& problem) {
  Problem fp8 = problem;
  fp8.dtype = Dtype::fp8_block;
  PlanOptions plans;
  plans.tables_dir = options.plans.tables_dir;
  return choose_plans(plans, gpu, fp8, options.token_counts);
}

void record(const BenchOptions& options, const BenchRun& run, const TechniqueRow& row) {
  if (options.out.empty()) return;
  update_rows(options.out, run, technique_row_json(run, row),
              {"model", "dtype", "num_tokens", "routing"});
}

void add_counters(const CallCounters& counters, TechniqueRow& row) {
  row.no_counters = counters.missing;
  for (TechniquePair& pair : row.pairs)
    for (TechniqueSide* side : {&pair.without, &pair.with})
      side->counters = counters.of(side->call);
}

bool has_failed(const TechniqueRow& row) {
  return std::any_of(row.pairs.begin(), row.pairs.end(), [](const TechniquePair& pair) {
    return pair.without.status == LevelStatus::failed || pair.with.status == LevelStatus::failed;
  });
}

}  // namespace

int bench_techniques(const BenchOptions& options) {
  if (parse_dtype(options.problem.dtype) != Dtype::bf16) {
    throw Error(ErrorKind::usage,
                "--techniques: the pairs are of bf16 layers, and fp8 is one of them; leave out "
                "--dtype");
  }
  const DeviceChoice device = choose_real_device(options, "--techniques");
  const std::vector<BenchLayer> layers = choose_layers(options, device.gpu);
  const BenchRun run = make_run(options, device.gpu, layers.front().problem);
  if (!options.out.empty()) {
    read_rows(options.out, run, "techniques");
    check_record_place(options.out);
  }
  NumberedCalls calls(options.profiled);
  std::vector<TechniqueRow> rows;
  for (const BenchLayer& layer : layers) {
    Techniques techniques(device.gpu, layer.problem, options.cache_dir, calls);
    std::vector<ChosenPlan> fp8_plans = layer.plans;  // unused without fp8 weights
    if (techniques.has_fp8()) fp8_plans = choose_fp8_plans(options, device.gpu, layer.problem);
    for (std::size_t i = 0; i < layer.plans.size(); ++i) {
      const ChosenPlan& chosen = layer.plans[i];
      if (!chosen.defect.empty()) {
        throw Error(ErrorKind::failed, fmt::format("the plan for {} tokens: {}; tune anew, or use "
                                                   "--reference",
                                                   chosen.num_tokens, chosen.defect));
      }
      TechniqueRow row{layer.name, layer.problem, chosen.lookup, {}, kNotProfiled};
      row.problem.num_tokens = chosen.num_tokens;
      techniques.run(row, chosen.plan, fp8_plans[i].plan);
      record(options, run, row);
      rows.push_back(row);
    }
  }
  if (options.profiled) return 0;
  const CallCounters counters = collect_counters(options, calls.count());
  for (TechniqueRow& row : rows) {
    add_counters(counters, row);
    record(options, run, row);
  }
  if (options.json) {
    print_json(technique_json(run, rows));
  } else {
    fmt::print("{}", technique_text(run, rows));
  }
  return std::any_of(rows.begin(), rows.end(), has_failed) ? exit_code(ErrorKind::failed) : 0;
}

}  // namespace moetune
