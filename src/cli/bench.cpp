#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "cli/bench_modes.hpp"
#include "cli/command.hpp"
#include "cli/outputs.hpp"
#include "cli/problem_options.hpp"
#include "core/error.hpp"
#include "core/text.hpp"
#include "report/bench_record.hpp"
#include "report/bench_report.hpp"
#include "report/summary.hpp"
#include "tune/evaluator.hpp"
#include "tune/worker_evaluator.hpp"

namespace moetune {
namespace {

std::unique_ptr<Evaluator> make_evaluator(const BenchOptions& options, const DeviceChoice& device,
                                          const BenchLayer& layer) {
  const EvaluatorOptions evaluator_options{.cache_dir = options.cache_dir,
                                           .records_dir = options.records_dir,
                                           .num_threads = options.num_jobs,
                                           .with_fp8 = wants_fp8(layer)};
  return device.ordinal < 0
             ? make_offline_evaluator(device.gpu, layer.problem, evaluator_options)
             : make_worker_evaluator(device.ordinal, layer.problem, evaluator_options);
}

Request request_of(const ChosenPlan& chosen) {
  return {.stage = Stage::layer,
          .num_tokens = chosen.num_tokens,
          .plan = chosen.plan,
          .thorough = true};
}

Trial time_plan(const ChosenPlan& chosen, Evaluator& evaluator) {
  if (chosen.defect.empty()) return evaluator.evaluate(request_of(chosen));
  Trial trial;
  trial.num_tokens = chosen.num_tokens;
  trial.plan = chosen.plan;
  trial.status = TrialStatus::rejected;
  trial.rule = "table";
  trial.reason = chosen.defect;
  return trial;
}

// Each row is recorded as soon as it is known, so that what stops a later one costs none.
void time_layer(const BenchOptions& options, const DeviceChoice& device, const BenchLayer& layer,
                const BenchRun& run, std::vector<BenchRow>& rows) {
  const auto evaluator = make_evaluator(options, device, layer);
  std::vector<Request> requests;
  for (const ChosenPlan& chosen : layer.plans)
    if (chosen.defect.empty()) requests.push_back(request_of(chosen));
  evaluator->prefetch(requests);
  for (const ChosenPlan& chosen : layer.plans) {
    BenchRow row{layer.name, layer.problem, chosen.lookup, time_plan(chosen, *evaluator)};
    row.problem.num_tokens = chosen.num_tokens;
    spdlog::info("{} {} {} tokens: {}", row.model, to_string(row.problem.dtype), chosen.num_tokens,
                 row.trial.status == TrialStatus::ok
                     ? time_text(row.trial.timing.median_us, row.trial.source, "us")
                     : to_string(row.trial.status));
    rows.push_back(row);
    if (options.out.empty() || update_record(options.out, run, row)) continue;
    spdlog::warn("{} {} tokens is not recorded: {}", row.model, chosen.num_tokens,
                 has_good_time(row.trial) ? "a measured time is there and this is none"
                                          : "there is no good time");
  }
}

Peers choose_peers(const BenchOptions& options, const BenchRun& run) {
  if (options.compare.empty()) return {};
  Peers peers = read_peers(options.compare, run.gpu);
  if (run.routing == Routing{}) return peers;
  spdlog::warn("{} is not compared: its times are for uniform routing", options.compare);
  return {};
}

void print(const BenchOptions& options, const BenchRun& run, const std::vector<BenchRow>& rows,
           const Peers& peers) {
  if (options.json) {
    print_json(bench_json(run, rows, peers));
  } else {
    fmt::print("{}", bench_text(run, rows, peers));
  }
}

int bench(BenchOptions options) {
  if (options.profiled) options.out.clear();  // that is for the process which wants the counters
  if (options.journey.chosen) return bench_journey(options);
  if (options.serving.chosen) return bench_serving(options);
  if (options.techniques) return bench_techniques(options);
  if (options.kernels) return bench_kernels(options);
  if (options.mxfp8) return bench_mxfp8(options);
  // Checked before anything is measured: what is wrong should show at once.
  const DeviceChoice device = choose_device(options.device);
  const std::vector<BenchLayer> layers = choose_layers(options, device.gpu);
  const Problem& first = layers.front().problem;
  const BenchRun run = make_run(options, device.gpu, first);
  const Peers peers = choose_peers(options, run);
  if (!options.out.empty()) {
    read_record(options.out, run);
    check_record_place(options.out);
  }

  std::vector<BenchRow> rows;
  try {
    for (const BenchLayer& layer : layers) time_layer(options, device, layer, run, rows);
  } catch (const Error&) {
    if (!rows.empty()) print(options, run, rows, peers);
    throw;
  }
  print(options, run, rows, peers);
  const bool all_good = std::all_of(rows.begin(), rows.end(),
                                    [](const BenchRow& row) { return has_good_time(row.trial); });
  return all_good ? 0 : exit_code(ErrorKind::failed);
}

}  // namespace

void add_bench(CLI::App& app, Run& run) {
  CLI::App* command =
      app.add_subcommand("bench", "Time whole layers with a table or a given point");
  command->footer(R"(Examples:
  moe-tune bench --model mixtral-8x7b,qwen3-30b-a3b --tokens 1,64,1024
  moe-tune bench --model deepseek-v3 --tp 8 --dtype fp8_block --out layers.json
  moe-tune bench --model mixtral-8x7b --gemm1 BLOCK_SIZE_M=16,NUM_STAGES=4 --gemm2 BLOCK_SIZE_M=16
  moe-tune bench --journey --model mixtral-8x7b --tokens 2048,8192 --figure journey.svg
  moe-tune bench --serving --model qwen3-30b-a3b --concurrency 8,32,128
  moe-tune bench --techniques --model mixtral-8x7b --tokens 1,256,4096
  moe-tune bench --kernels --model deepseek-v3 --dtype fp8_block --tokens 8192

Every layer is first compared with the reference. Exit codes: 0 good; 1 a layer could not be timed or
was wrong; 2 bad usage, an unreadable input or an unwritable output; 3 no usable device.)");
  auto options = std::make_shared<BenchOptions>();
  options->problem.add_to(*command);
  command->get_option("--model")
      ->description("Shipped names, model files, or Hugging Face config.json files, a list")
      ->type_name("MODEL,...")
      ->join(',');
  add_token_counts(*command, options->token_counts);
  const std::string plan = "Plan";
  auto* tables = command
                     ->add_option("--tables", options->plans.tables_dir,
                                  "Where the tables of all GPUs are; without one for the layer, "
                                  "the reference point is timed")
                     ->capture_default_str()
                     ->type_name("DIR")
                     ->group(plan);
  auto* table = command->add_option("--table", options->plans.table, "This table")
                    ->type_name("FILE")
                    ->excludes(tables)
                    ->group(plan);
  const auto add_point = [&](const char* name, std::string& text) {
    return command
        ->add_option(name, text,
                     "This point, [VARIANT:]NAME=VALUE,...; what it leaves out is as in the "
                     "reference point")
        ->type_name("POINT")
        ->check([](const std::string& given) { return given.empty() ? "a point is empty" : ""; })
        ->excludes(tables)
        ->excludes(table)
        ->group(plan);
  };
  auto* gemm1 = add_point("--gemm1", options->plans.gemm1);
  auto* gemm2 = add_point("--gemm2", options->plans.gemm2)->needs(gemm1);
  gemm1->needs(gemm2);
  command->add_flag("--reference", options->plans.reference, "The reference point")
      ->excludes(tables)
      ->excludes(table)
      ->excludes(gemm1)
      ->group(plan);
  command->add_option("--device", options->device, "auto, a number, a name or offline:NAME")
      ->capture_default_str();
  command
      ->add_option("--compare", options->compare,
                   "Others' times of the same layers: JSON with rows of model, dtype, num_tokens, "
                   "vllm_triton_tuned_us, best_peer_us, floor_us")
      ->type_name("FILE");
  command
      ->add_option("--out", options->out,
                   "Record to merge the rows into; a measured time is only replaced by another")
      ->type_name("FILE");
  command->add_option("--commit", options->commit, "What was timed, for the record")
      ->type_name("TEXT");
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
  command->add_flag("--json", options->json, "Print JSON");
  add_journey_options(*command, options->journey);
  add_serving_options(*command, options->serving);
  command
      ->add_flag("--techniques", options->techniques,
                 "Techniques one by one, in pairs: tile order, split-K, fused SwiGLU, padding, fp8 "
                 "weights; bf16, on a GPU")
      ->excludes("--serving")
      ->excludes("--journey")
      ->group("Techniques");
  command
      ->add_flag("--kernels", options->kernels,
                 "The kernels of a layer one by one, each with its time, floor and counters; on a "
                 "GPU with Nsight Compute's ncu")
      ->excludes("--techniques")
      ->excludes("--serving")
      ->excludes("--journey")
      ->group("Techniques");
  command
      ->add_option(
          "--counters", options->counters,
          "--techniques, --kernels: auto has ncu count L2 hits and more in a second run of "
          "the same calls, where it is there and may; off does not")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "off"}))
      ->group("Techniques");
  command->add_flag("--profiled", options->profiled)->group("");
  command
      ->add_flag(
          "--mxfp8", options->mxfp8,
          "MXFP8 (e4m3 with a scale for 32 values): quantising beside a copy of as many bytes, "
          "both GEMMs tuned, and the layer; on a GPU")
      ->excludes("--techniques")
      ->excludes("--kernels")
      ->excludes("--serving")
      ->excludes("--journey")
      ->group("Techniques");
  // Steps have as many tokens as they come to.
  command->get_option("--serving")->excludes("--journey")->excludes("--tokens");
  for (const char* mode : {"--journey", "--serving", "--techniques", "--kernels", "--mxfp8"})
    command->get_option("--compare")->excludes(mode);
  command->callback([&run, options] { run = [options] { return bench(*options); }; });
}

}  // namespace moetune
