#include "bench/journey.hpp"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include "bench/check_plan.hpp"
#include "bench/measure_call.hpp"
#include "core/error.hpp"
#include "lab/loaded_plan.hpp"
#include "lab/reference.hpp"

namespace moetune {
namespace {

constexpr int kFirstCublasLevel = 4;
constexpr int kGraphLevel = 5;
constexpr int kTunedLevel = 6;

}  // namespace

Journey::Journey(const Gpu& gpu, const Problem& problem, const JourneyOptions& options)
    : gpu_(gpu),
      problem_(problem),
      options_(options),
      compiler_(arch_name(gpu), options.cache_dir, 0) {
  check_cuda(cudaSetDevice(gpu.ordinal), "cudaSetDevice");
  layer_ = std::make_unique<Layer>(gpu_, problem_, false, compiler_);
  levels_ = std::make_unique<Levels>(gpu_, *layer_, options.cache_dir, options.memory_limit_bytes);
}

void Journey::measure(int number, const JourneyRow& row, const std::string& defect,
                      TokenBatch& batch, JourneyLevel& level) {
  LayerCall call{.enqueue = {},
                 .result = {},
                 .fp8 = false,
                 .graph = level.graph,
                 .budget_s = options_.budget_s};
  std::unique_ptr<LoadedPlan> plan;
  if (number == kTunedLevel) {
    if (!defect.empty()) throw Error(ErrorKind::failed, defect);
    check_plan(gpu_, batch.problem, row.plan, compiler_);
    plan = std::make_unique<LoadedPlan>(*layer_, batch.problem, row.plan, Stage::layer);
    plan->prepare(batch);
    layer_->poison();
    call.enqueue = [&](int routing) { plan->enqueue(batch, routing); };
    call.result = [&] { return plan->result(batch); };
    level.workspace_bytes = workspace_bytes(plan->program(batch));
  } else {
    levels_->prepare(number, batch);
    levels_->poison();
    call.enqueue = [&, number](int routing) { levels_->enqueue(number, batch, routing); };
    call.result = [&] { return levels_->result(); };
    level.workspace_bytes = levels_->workspace_bytes();
  }
  const MeasuredCall measured = measure_call(*layer_, batch, call);
  level.rel_err = measured.deviation.rel_err;
  level.max_err = measured.deviation.max_err;
  level.timing = measured.timing;
  level.calls_a_sample = measured.calls_a_sample;
}

void Journey::run(JourneyRow& row, const std::string& defect) {
  Problem problem = problem_;
  problem.num_tokens = row.problem.num_tokens;
  const auto batch = layer_->make_batch(problem, kBenchRoutings);
  make_reference(*layer_, *batch, false);
  const std::string no_cublas = Cublas::missing();
  for (int i = 0; i < kNumLevels; ++i) {
    JourneyLevel& level = row.levels.at(static_cast<std::size_t>(i));
    level.graph = i >= kGraphLevel;
    if ((i == kFirstCublasLevel || i == kGraphLevel) && !no_cublas.empty()) {
      level.status = LevelStatus::skipped;
      level.reason = no_cublas;
      continue;
    }
    try {
      measure(i, row, defect, *batch, level);
      spdlog::info("{} {} tokens, level {} {}: {:.1f} us", row.model, problem.num_tokens, i,
                   level_name(i), level.timing.median_us);
    } catch (const Error& error) {
      // A refused launch or too little memory is this level's failure; after a fault all would be.
      if (cudaDeviceSynchronize() != cudaSuccess)
        throw Error(ErrorKind::device, fmt::format("level {}: {}", i, error.what()));
      level.status = LevelStatus::failed;
      level.reason = error.what();
      spdlog::warn("{} {} tokens, level {} {}: {}", row.model, problem.num_tokens, i, level_name(i),
                   level.reason);
    }
    if (i == 1 || i == 2) {
      level.note =
          fmt::format("all slots' weights at once are {:.1f} GB; {} parts of at most {:.1f} GB",
                      levels_->gather_bytes(*batch) / 1e9, levels_->num_chunks(*batch),
                      options_.memory_limit_bytes / 1e9);
    } else if (i == kFirstCublasLevel && level.status == LevelStatus::ok) {
      level.note = fmt::format("cuBLAS {}", levels_->cublas()->version());
    }
  }
}

}  // namespace moetune
