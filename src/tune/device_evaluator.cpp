// Runs plans on a GPU: compile, check resources, compare with the judge, and only then time.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <map>
#include <utility>

#include "core/error.hpp"
#include "jit/static_check.hpp"
#include "lab/loaded_plan.hpp"
#include "lab/reference.hpp"
#include "measure/check.hpp"
#include "measure/energy.hpp"
#include "measure/nvml.hpp"
#include "measure/timing.hpp"
#include "tune/evaluator.hpp"

namespace moetune {
namespace {

// A graph longer than this is screened with fewer calls: its weights no longer fit any cache, so
// further routings add time but no information.
constexpr double kLongGraphUs = 2000;
constexpr int kScreeningSamples = 3;
static_assert(kScreeningSamples < kRoundSamples);
constexpr double kLongRoundUs = 20'000;  // the same for a round of finals
// The call that was checked is a first look, its launch included: enough to drop a long call that
// took this much more than the limit.
constexpr double kFirstLookUs = 200;
constexpr double kFirstLookFactor = 1.2;
constexpr double kEnergyRunUs = 10'000;  // between two reads of the counter

struct CheckCase {
  std::string name;
  std::unique_ptr<TokenBatch> batch;
};

// A plan that was found right in the first round of finals, ready for the next.
struct Finalist {
  std::unique_ptr<LoadedPlan> plan;
  Trial trial;  // what the check said
  double call_us = 0;
  std::unique_ptr<Graph> graph;
  int num_calls = 0;   // in the graph
  int generation = 0;  // of the layer's memory then
};

class DeviceEvaluator final : public Evaluator {
 public:
  DeviceEvaluator(int ordinal, const Problem& problem, const EvaluatorOptions& options);

  const Gpu& gpu() const override { return gpu_; }
  std::string nvrtc_version() const override { return moetune::nvrtc_version(); }
  void prefetch(std::span<const Request> requests) override;
  Trial evaluate(const Request& request) override;
  Usage usage() const override {
    const Compiler::Stats stats = compiler_.stats();
    return {.busy_s = busy_us_ / 1e6,
            .compile_s = stats.compile_s,
            .peak_host_bytes = stats.peak_host_bytes};
  }

 private:
  Problem at(std::int64_t num_tokens) const;
  bool is_fit(const Request& request, Trial& trial);
  TokenBatch& batch(std::int64_t num_tokens);
  bool is_right(const Request& request, LoadedPlan& plan, TokenBatch& batch, std::string_view name,
                Trial& trial, double* call_us);
  double energy_mj(const Graph& graph, int num_calls, double call_us);
  TimingOptions timing_options(const Request& request, double call_us) const;
  void sample(const Request& request, const Graph& graph, const TimingOptions& options,
              Trial& trial);
  void time(const Request& request, Finalist& plan, TokenBatch& batch, Trial& trial);
  Finalist* ready(Stage stage, std::int64_t num_tokens, const Plan& plan);
  bool time_in_turns(const Request& request, Trial& trial);

  Gpu gpu_;
  Problem problem_;
  EvaluatorOptions options_;
  Compiler compiler_;
  std::unique_ptr<Nvml> nvml_;  // null: no clock check
  std::unique_ptr<Layer> layer_;
  std::vector<CheckCase> cases_;
  std::unique_ptr<TokenBatch> batch_;
  // What is_right() found on the check cases: they do not depend on the token count.
  std::map<std::string, Trial> verdicts_;
  std::map<std::string, std::unique_ptr<Finalist>> finalists_;  // of batch_
  std::map<std::string, Trial> measured_;  // in turns with one that was asked for before
  double busy_us_ = 0;
};

bool is_round(const Request& request) {
  return request.thorough && request.num_samples < kFullSamples;
}

std::string plan_key(Stage stage, const Plan& plan) {
  return fmt::format("{}:{}", to_string(stage), plan.key());
}
std::string plan_key(const Request& request) {
  return plan_key(request.stage, request.plan);
}

Gpu select_gpu(int ordinal) {
  const auto gpus = list_gpus();
  for (const Gpu& gpu : gpus) {
    if (gpu.ordinal != ordinal) continue;
    check_cuda(cudaSetDevice(ordinal), "cudaSetDevice");
    return gpu;
  }
  throw Error(ErrorKind::device,
              fmt::format("no GPU {}: this machine has {} usable GPUs", ordinal, gpus.size()));
}

// Null: no clock check, and no energy. Throws Error(device) when that is wanted and not to be had.
std::unique_ptr<Nvml> open_nvml(int ordinal, bool with_energy) {
  char pci_bus_id[32] = {};
  check_cuda(cudaDeviceGetPCIBusId(pci_bus_id, sizeof pci_bus_id, ordinal),
             "cudaDeviceGetPCIBusId");
  std::string why;
  auto nvml = Nvml::open(pci_bus_id, why);
  if (!nvml) spdlog::debug("no clock check: {}", why);
  if (with_energy && !(nvml && nvml->energy_mj())) {
    throw Error(ErrorKind::device,
                fmt::format("the energy counter of GPU {} cannot be read: {}; choose another "
                            "objective than energy",
                            ordinal, nvml ? "NVML has none for it" : why));
  }
  return nvml;
}

DeviceEvaluator::DeviceEvaluator(int ordinal, const Problem& problem,
                                 const EvaluatorOptions& options)
    : gpu_(select_gpu(ordinal)),
      problem_(problem),
      options_(options),
      compiler_(arch_name(gpu_), options.cache_dir, options.num_threads, embedded_kernels(),
                options.program),
      nvml_(open_nvml(ordinal, options.with_energy)) {
  const bool fp8 = gpu_.cc() >= 89 && (is_fp8(problem.dtype) || options.with_fp8);
  layer_ = std::make_unique<Layer>(gpu_, problem_, fp8, compiler_);
  const LayerShape& s = problem_.shape;
  const auto add = [&](const char* name, std::int64_t num_tokens, RoutingKind kind, double exponent,
                       std::int64_t num_hot) {
    Problem check = at(num_tokens);
    check.routing = {kind, exponent, num_hot, ""};
    check.seed = problem_.seed + 17;
    cases_.push_back({name, layer_->make_batch(check, 1)});
  };
  // Odd counts leave ragged tiles; few hot experts leave the others without a row.
  add("uniform", 64, RoutingKind::uniform, 0, 0);
  add("skewed", 96, RoutingKind::zipf, 1.5, 0);
  add("empty experts", 33, RoutingKind::hot, 0,
      std::min(s.num_experts, std::max(s.top_k, s.num_experts / 8)));
  add("ragged", 77, RoutingKind::zipf, 0.5, 0);
}

Problem DeviceEvaluator::at(std::int64_t num_tokens) const {
  Problem problem = problem_;
  problem.num_tokens = num_tokens;
  return problem;
}

void DeviceEvaluator::prefetch(std::span<const Request> requests) {
  submit(gpu_, problem_, requests, compiler_);
}

// Whether the request's steps compile, fit the GPU and go together; else the trial says why not.
bool DeviceEvaluator::is_fit(const Request& request, Trial& trial) {
  for (const Step& step : request.plan.steps) {
    if (!check_static(gpu_, at(request.num_tokens), step, compiler_, trial)) return false;
  }
  std::string defect = pair_defect(request.plan);
  const Step* const gemm2 = request.plan.find("gemm2");
  if (request.stage == Stage::gemm2 && gemm2 != nullptr &&
      find_variant(gemm2->variant).fuses_gemms(gemm2->point)) {
    defect = "joined: with JOIN_GEMM1 1 there is no GEMM2 by itself";
  }
  if (defect.empty()) return true;
  const std::size_t colon = defect.find(": ");  // "RULE: reason"
  trial.status = TrialStatus::rejected;
  trial.rule = defect.substr(0, colon);
  trial.reason = defect.substr(colon + 2);
  return false;
}

TokenBatch& DeviceEvaluator::batch(std::int64_t num_tokens) {
  if (!batch_ || batch_->problem.num_tokens != num_tokens) {
    finalists_.clear();
    measured_.clear();
    batch_.reset();  // frees before the next one is made
    batch_ = layer_->make_batch(at(num_tokens), options_.num_routings);
  }
  return *batch_;
}

// One call on routing 0 with poisoned outputs, compared with the judge. Adds to the trial's errors.
bool DeviceEvaluator::is_right(const Request& request, LoadedPlan& plan, TokenBatch& batch,
                               std::string_view name, Trial& trial, double* call_us) {
  const Event busy_begin;
  busy_begin.record(layer_->stream());
  make_reference(*layer_, batch, plan.fp8());
  plan.prepare(batch);
  layer_->poison();
  plan.set_up(batch);
  const Event begin;
  const Event end;
  begin.record(layer_->stream());
  plan.enqueue(batch, 0);
  end.record(layer_->stream());
  busy_us_ += elapsed_us(busy_begin, end);
  const Deviation deviation = plan.deviation(batch);
  if (call_us != nullptr) *call_us = elapsed_us(begin, end);
  trial.rel_err = std::max(trial.rel_err, deviation.rel_err);
  trial.max_err = std::max(trial.max_err, deviation.max_err);
  if (plan.fp8() && request.stage == Stage::layer && request.thorough) {
    make_reference(*layer_, batch, false);
    const Deviation cost =
        compare(*layer_, plan.result(batch), nullptr, batch.reference[0]->out.get<float>(),
                batch.problem.num_tokens, problem_.shape.hidden_size);
    trial.quantisation_err = std::max(trial.quantisation_err, cost.rel_err);
  }
  const std::string defect = judge_deviation(deviation, tolerance(plan.fp8()));
  if (defect.empty()) return true;
  trial.status = TrialStatus::wrong_result;
  trial.rel_err = deviation.rel_err;
  trial.reason = fmt::format("{} routing, {} tokens: {}", name, batch.problem.num_tokens, defect);
  return false;
}

// Of one call; 0 when the counter fails.
double DeviceEvaluator::energy_mj(const Graph& graph, int num_calls, double call_us) {
  const int num_replays =
      std::max(1, static_cast<int>(kEnergyRunUs / std::max(call_us * num_calls, 1.0)));
  const Event begin;
  const Event end;
  EnergyMeter meter;
  meter.run = [&] {
    begin.record(layer_->stream());
    for (int i = 0; i < num_replays; ++i) graph.launch(layer_->stream());
    end.record(layer_->stream());
    const double us = elapsed_us(begin, end);
    busy_us_ += us;
    return us;
  };
  meter.read_mj = [this] { return nvml_->energy_mj(); };
  return energy_of_run_mj(meter).value_or(0) / (1.0 * num_replays * num_calls);
}

TimingOptions DeviceEvaluator::timing_options(const Request& request, double call_us) const {
  TimingOptions options;
  options.num_calls = static_cast<int>(batch_->routings.size());
  options.stop_above_us = request.stop_above_us;
  const auto shorten = [&](double graph_us) {
    options.num_calls = std::clamp(static_cast<int>(graph_us / call_us), 1, options.num_calls);
  };
  const bool is_long = call_us * options.num_calls > kLongGraphUs;
  if (!request.thorough) {
    options.num_samples = kScreeningSamples;
    options.num_warmups = is_long ? 0 : 1;
    if (is_long) shorten(kLongGraphUs);
  } else {
    options.num_samples = request.num_samples;
    if (is_round(request) && is_long) {
      options.num_warmups = 1;
      shorten(kLongRoundUs);
    }
  }
  return options;
}

void DeviceEvaluator::sample(const Request& request, const Graph& graph,
                             const TimingOptions& options, Trial& trial) {
  std::function<std::optional<ClockReading>()> read_clock;
  // A first look is too short for it.
  if (request.thorough && nvml_) read_clock = [this] { return nvml_->clock(); };
  const GraphTiming timed = time_graph(graph, layer_->stream(), options, read_clock);
  busy_us_ += timed.busy_us;
  trial.timing = timed.timing;
  trial.screened_out = timed.stopped;
  if (options_.with_energy && request.thorough && request.stage == Stage::layer) {
    trial.energy_mj = energy_mj(graph, options.num_calls, trial.timing.median_us);
  }
}

void DeviceEvaluator::time(const Request& request, Finalist& plan, TokenBatch& batch,
                           Trial& trial) {
  const double call_us = plan.call_us;
  if (!request.thorough && request.stop_above_us > 0 && call_us > kFirstLookUs &&
      call_us > kFirstLookFactor * request.stop_above_us) {
    trial.timing = {call_us, call_us, call_us, 1, 0};
    trial.screened_out = true;
    return;
  }
  const TimingOptions options = timing_options(request, call_us);
  plan.num_calls = options.num_calls;
  plan.graph = std::make_unique<Graph>(layer_->stream(), [&] {
    for (int r = 0; r < plan.num_calls; ++r) plan.plan->enqueue(batch, r);
  });
  sample(request, *plan.graph, options, trial);
}

// Null when it was not measured before, or its graph's buffers are gone.
Finalist* DeviceEvaluator::ready(Stage stage, std::int64_t num_tokens, const Plan& plan) {
  if (!batch_ || batch_->problem.num_tokens != num_tokens) return nullptr;
  const auto found = finalists_.find(plan_key(stage, plan));
  if (found == finalists_.end()) return nullptr;
  Finalist* const finalist = found->second.get();
  return finalist->generation == layer_->generation() ? finalist : nullptr;
}

// A later round of finals. False when the plan must be checked first.
bool DeviceEvaluator::time_in_turns(const Request& request, Trial& trial) {
  if (request.beside.empty()) {
    measured_.clear();
    return false;
  }
  if (const auto found = measured_.find(plan_key(request)); found != measured_.end()) {
    trial = std::move(found->second);
    measured_.erase(found);
    return true;
  }
  if (ready(request.stage, request.num_tokens, request.plan) == nullptr) return false;
  measured_.clear();
  std::vector<Finalist*> plans;
  for (const Plan& plan : request.beside) {
    Finalist* const finalist = ready(request.stage, request.num_tokens, plan);
    if (finalist != nullptr) plans.push_back(finalist);
  }
  const Stream& stream = layer_->stream();
  const std::size_t num_plans = plans.size();
  std::vector<Event> begins(num_plans), ends(num_plans);
  std::vector<std::vector<double>> samples(num_plans);
  std::optional<ClockReading> clock;
  for (int k = 0; k < request.num_samples; ++k) {
    for (std::size_t i = 0; i < num_plans; ++i) {
      const std::size_t at = (i + static_cast<std::size_t>(k)) % num_plans;
      // A GEMM alone finds tiles and rows as the plan before left them.
      plans[at]->plan->set_up(*batch_);
      begins[at].record(stream);
      plans[at]->graph->launch(stream);
      ends[at].record(stream);
    }
    if (k + 1 == request.num_samples && nvml_) clock = nvml_->clock();  // while they run
    for (std::size_t i = 0; i < num_plans; ++i) {
      const double us = elapsed_us(begins[i], ends[i]);
      busy_us_ += us;
      samples[i].push_back(us / plans[i]->num_calls);
    }
  }
  level_turns(samples);
  for (std::size_t i = 0; i < num_plans; ++i) {
    Trial measured = plans[i]->trial;
    measured.timing = summarise(std::move(samples[i]));
    if (clock) {
      measured.timing.clock_mhz = clock->sm_mhz;
      measured.timing.unsteady = clock->is_slowed;
    }
    measured_.insert_or_assign(plan_key(request.stage, measured.plan), std::move(measured));
  }
  const auto own = measured_.find(plan_key(request));
  if (own == measured_.end()) return false;
  trial = std::move(own->second);
  measured_.erase(own);
  return true;
}

Trial DeviceEvaluator::evaluate(const Request& request) {
  Trial trial;
  trial.stage = request.stage;
  trial.num_tokens = request.num_tokens;
  trial.plan = request.plan;
  try {
    if (time_in_turns(request, trial)) return trial;
    if (!is_fit(request, trial)) return trial;
    auto plan = std::make_unique<Finalist>();
    plan->plan = std::make_unique<LoadedPlan>(*layer_, problem_, request.plan, request.stage);
    auto verdict = verdicts_.find(plan_key(request));
    if (verdict == verdicts_.end()) {
      Trial checked;
      for (const CheckCase& check : cases_) {
        if (!is_right(request, *plan->plan, *check.batch, check.name, checked, nullptr)) break;
      }
      verdict = verdicts_.emplace(plan_key(request), std::move(checked)).first;
    }
    trial.rel_err = verdict->second.rel_err;
    trial.max_err = verdict->second.max_err;
    trial.status = verdict->second.status;
    trial.reason = verdict->second.reason;
    if (trial.status != TrialStatus::ok) return trial;
    TokenBatch& inputs = batch(request.num_tokens);
    if (!is_right(request, *plan->plan, inputs, to_string(problem_.routing), trial,
                  &plan->call_us)) {
      return trial;
    }
    trial.workspace_bytes = workspace_bytes(plan->plan->program(inputs));
    plan->trial = trial;
    time(request, *plan, inputs, trial);
    if (is_round(request)) {
      plan->generation = layer_->generation();
      finalists_.insert_or_assign(plan_key(request), std::move(plan));
    }
  } catch (const Error& error) {
    // A refused launch is the point's failure. After a fault every call fails: the device is lost.
    if (error.kind() != ErrorKind::device) throw;
    const cudaError_t state = cudaDeviceSynchronize();
    if (state != cudaSuccess) {
      throw Error(ErrorKind::device, fmt::format("{} ({})", error.what(), request.plan.key()));
    }
    trial.status = TrialStatus::launch_failed;
    trial.reason = error.what();
  }
  return trial;
}

}  // namespace

std::unique_ptr<Evaluator> make_device_evaluator(int ordinal, const Problem& problem,
                                                 const EvaluatorOptions& options) {
  return std::make_unique<DeviceEvaluator>(ordinal, problem, options);
}

}  // namespace moetune
