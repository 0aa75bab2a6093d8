// `moe-tune bench --kernels`: the kernels of a layer one by one, each beside its own floor.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <vector>

#include "bench/check_plan.hpp"
#include "bench/numbered_calls.hpp"
#include "cli/bench_modes.hpp"
#include "core/error.hpp"
#include "lab/loaded_plan.hpp"
#include "lab/reference.hpp"
#include "report/bench_record.hpp"
#include "report/kernel_report.hpp"
#include "report/row_record.hpp"

namespace moetune {
namespace {

std::vector<std::int64_t> expert_rows(const Problem& problem) {
  std::vector<std::int64_t> rows(static_cast<std::size_t>(problem.shape.num_experts));
  for (const std::int32_t expert : make_routing(problem, kProfiledRouting).topk_ids)
    ++rows[static_cast<std::size_t>(expert)];
  return rows;
}

// Fills all but the counters. A layer that does not run or is wrong is data; throws Error(device)
// when the GPU is lost.
void measure(const Gpu& gpu, Layer& layer, Compiler& compiler, const ChosenPlan& chosen,
             NumberedCalls& calls, KernelRow& row) {
  row.call = calls.begin(layer);
  try {
    if (!chosen.defect.empty()) throw Error(ErrorKind::failed, chosen.defect);
    check_plan(gpu, row.problem, row.plan, compiler);
    LoadedPlan loaded(layer, row.problem, row.plan, Stage::layer);
    const auto batch = layer.make_batch(row.problem, calls.num_routings());
    if (!calls.profiling()) make_reference(layer, *batch, loaded.fp8());
    loaded.prepare(*batch);
    row.works = kernel_works(loaded.program(*batch), expert_rows(row.problem));
    layer.poison();
    LayerCall call;
    call.enqueue = [&](int routing) { loaded.enqueue(*batch, routing); };
    call.result = [&] { return loaded.result(*batch); };
    call.fp8 = loaded.fp8();
    const MeasuredCall measured = calls.measure(layer, *batch, call);
    row.timing = measured.timing;
    row.rel_err = measured.deviation.rel_err;
  } catch (const Error& error) {
    const std::string what =
        fmt::format("{} {} tokens: {}", row.model, row.problem.num_tokens, error.what());
    if (cudaDeviceSynchronize() != cudaSuccess) throw Error(ErrorKind::device, what);
    row.status = LevelStatus::failed;
    row.reason = error.what();
    spdlog::warn("{}", what);
  }
}

void record(const BenchOptions& options, const BenchRun& run, const KernelRow& row) {
  if (options.out.empty()) return;
  update_rows(options.out, run, kernel_row_json(run, row),
              {"model", "dtype", "num_tokens", "routing"});
}

}  // namespace

int bench_kernels(const BenchOptions& options) {
  const DeviceChoice device = choose_real_device(options, "--kernels");
  const std::vector<BenchLayer> layers = choose_layers(options, device.gpu);
  const BenchRun run = make_run(options, device.gpu, layers.front().problem);
  if (!options.out.empty()) {
    read_rows(options.out, run, "kernels");
    check_record_place(options.out);
  }
  check_cuda(cudaSetDevice(device.ordinal), "cudaSetDevice");
  NumberedCalls calls(options.profiled);
  std::vector<KernelRow> rows;
  for (const BenchLayer& one : layers) {
    Compiler compiler(arch_name(device.gpu), options.cache_dir, 0);
    Layer layer(device.gpu, one.problem, wants_fp8(one), compiler);
    for (const ChosenPlan& chosen : one.plans) {
      KernelRow row;
      row.model = one.name;
      row.problem = one.problem;
      row.problem.num_tokens = chosen.num_tokens;
      row.lookup = chosen.lookup;
      row.plan = chosen.plan;
      measure(device.gpu, layer, compiler, chosen, calls, row);
      row.no_counters = kNotProfiled;
      record(options, run, row);
      rows.push_back(row);
    }
  }
  if (options.profiled) return 0;
  const CallCounters counters = collect_counters(options, calls.count());
  for (KernelRow& row : rows) {
    row.no_counters = counters.missing;
    row.counters = counters.of(row.call);
    record(options, run, row);
  }
  if (options.json) {
    print_json(kernel_json(run, rows));
  } else {
    fmt::print("{}", kernel_text(run, rows));
  }
  const bool all_good = std::all_of(
      rows.begin(), rows.end(), [](const KernelRow& row) { return row.status == LevelStatus::ok; });
  return all_good ? 0 : exit_code(ErrorKind::failed);
}

}  // namespace moetune
