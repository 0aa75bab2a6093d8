// Trials without a GPU: compiled and rejected for real, timed from records or by a model.
#include <algorithm>
#include <limits>
#include <map>
#include <utility>
#include <vector>

#include "core/error.hpp"
#include "jit/static_check.hpp"
#include "program/build.hpp"
#include "tune/evaluator.hpp"
#include "tune/records.hpp"

namespace moetune {
namespace {

// The sort of the tokens by expert and the gaps between a layer's kernels in one CUDA graph: about
// four launches of 2 us, whatever the plan.
constexpr double kFixedLayerUs = 8;

class OfflineEvaluator : public Evaluator {
 public:
  OfflineEvaluator(const Gpu& gpu, const Problem& problem, const EvaluatorOptions& options)
      : gpu_(gpu),
        problem_(problem),
        records_(options.records_dir, gpu, problem),
        compiler_(arch_name(gpu), options.cache_dir, options.num_threads, embedded_kernels(),
                  options.program) {
    gpu_.offline = true;
  }

  const Gpu& gpu() const override { return gpu_; }
  std::string nvrtc_version() const override { return moetune::nvrtc_version(); }
  void prefetch(std::span<const Request> requests) override {
    submit(gpu_, problem_, requests, compiler_);
  }
  Usage usage() const override {
    const double compile_s = compiler_.stats().compile_s;
    return {.busy_s = compile_s, .compile_s = compile_s};
  }

  Trial evaluate(const Request& request) override {
    Trial trial;
    trial.stage = request.stage;
    trial.num_tokens = request.num_tokens;
    trial.plan = request.plan;
    trial.source = Source::predicted;
    Problem problem = problem_;
    problem.num_tokens = request.num_tokens;
    for (const Step& step : request.plan.steps)
      if (!check_static(gpu_, problem, step, compiler_, trial)) return trial;

    trial.workspace_bytes = workspace_bytes(build(gpu_, problem, request.plan, request.stage));
    if (const Trial* record = records_.find(request.stage, request.num_tokens, request.plan)) {
      trial.source = Source::recorded;
      trial.timing = record->timing;
      trial.screened_out = record->screened_out;
    } else {
      const Calibration& known = calibration(request.stage, request.num_tokens);
      const double time_us =
          std::max(known.floor_us, known.scale * predict_us(request.stage, problem, request.plan));
      trial.timing = {.median_us = time_us, .p10_us = time_us, .p90_us = time_us};
    }
    return trial;
  }

 private:
  double predict_us(Stage stage, const Problem& problem, const Plan& plan) const {
    double sum_us = stage == Stage::layer ? kFixedLayerUs : 0;
    for (const Step& step : plan.steps)
      sum_us += find_variant(step.variant).predict_us(gpu_, problem, stage_of(step), step.point);
    return sum_us;
  }

  // What the records of a stage say about the model.
  struct Calibration {
    double scale = 1;     // median of recorded over predicted time
    double floor_us = 0;  // a point that nobody measured is not placed ahead of, or in a tie with,
                          // the fastest that somebody did
  };

  const Calibration& calibration(Stage stage, std::int64_t num_tokens) {
    const auto [known, is_new] = calibrations_.try_emplace({stage, num_tokens});
    if (!is_new) return known->second;
    Problem problem = problem_;
    problem.num_tokens = num_tokens;
    std::vector<double> ratios;
    double fastest_us = std::numeric_limits<double>::infinity();
    for (const auto& [key, record] : records_.at(stage, num_tokens)) {
      try {
        const double predicted_us = predict_us(stage, problem, record.trial.plan);
        ratios.push_back(record.trial.timing.median_us / predicted_us);
        fastest_us = std::min(fastest_us, record.trial.timing.median_us);
      } catch (const Error&) {
        // A plan of kernels that are no more says nothing about today's.
      }
    }
    if (ratios.empty()) return known->second;
    const auto middle = ratios.begin() + static_cast<std::ptrdiff_t>(ratios.size() / 2);
    std::nth_element(ratios.begin(), middle, ratios.end());
    return known->second = {*middle, 1.03 * fastest_us};
  }

  Gpu gpu_;
  Problem problem_;
  Records records_;
  Compiler compiler_;
  std::map<std::pair<Stage, std::int64_t>, Calibration> calibrations_;
};

}  // namespace

std::unique_ptr<Evaluator> make_offline_evaluator(const Gpu& gpu, const Problem& problem,
                                                  const EvaluatorOptions& options) {
  if (options.with_energy)
    throw Error(ErrorKind::device, "energy cannot be had offline; it needs a GPU");
  return std::make_unique<OfflineEvaluator>(gpu, problem, options);
}

}  // namespace moetune
