#include "bench/step_timer.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "bench/check_plan.hpp"
#include "core/error.hpp"
#include "core/statistics.hpp"

namespace moetune {
namespace {

constexpr std::int64_t kCheckTokens = 64;
constexpr int kReuseSamples = 9;

}  // namespace

StepTimer::StepTimer(const Gpu& gpu, Layer& layer, TokenBatch& batch,
                     std::span<const CountPlan> plans, Compiler& compiler,
                     const StepTimerOptions& options)
    : layer_(layer), batch_(batch), options_(options) {
  Problem problem = batch.problem;
  problem.num_tokens = kCheckTokens;
  const auto check_batch = layer.make_batch(problem, 1);
  std::map<std::string, std::shared_ptr<LoadedPlan>> loaded;
  for (const CountPlan& one : plans) {
    std::shared_ptr<LoadedPlan>& plan = loaded[one.plan.key()];
    if (!plan) {
      check_plan(gpu, problem, one.plan, compiler);
      plan = std::make_shared<LoadedPlan>(layer, problem, one.plan, Stage::layer);
      plan->check(*check_batch, fmt::format("the plan for {} tokens", one.num_tokens));
    }
    batch.problem.num_tokens = one.num_tokens;
    plan->prepare(batch);
    entries_[one.num_tokens].plan = plan;
  }
}

double StepTimer::launch_s(const Entry& entry) {
  begin_.record(layer_.stream());
  entry.graph->launch(layer_.stream());
  end_.record(layer_.stream());
  ++num_launches_;
  return elapsed_us(begin_, end_) * 1e-6 / options_.num_launched * options_.num_layers;
}

double StepTimer::step_s(std::int64_t num_tokens) {
  const auto found = entries_.lower_bound(num_tokens);
  if (found == entries_.end()) {
    throw Error(ErrorKind::failed,
                fmt::format("a step of {} tokens, but plans only up to {}", num_tokens,
                            entries_.empty() ? 0 : entries_.rbegin()->first));
  }
  Entry& entry = found->second;
  if (entry.measured_s > 0) return entry.measured_s;
  if (!entry.graph) {
    batch_.problem.num_tokens = found->first;
    entry.graph = std::make_unique<Graph>(layer_.stream(), [&] {
      for (int call = 0; call < options_.num_launched; ++call) entry.plan->enqueue(batch_, call);
    });
    launch_s(entry);  // the first launch of a graph is no measure
  }
  if (!options_.reuse) return launch_s(entry);
  std::vector<double> samples(kReuseSamples);
  for (double& sample : samples) sample = launch_s(entry);
  std::sort(samples.begin(), samples.end());
  entry.measured_s = percentile(samples, 50);
  return entry.measured_s;
}

}  // namespace moetune
