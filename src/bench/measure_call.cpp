#include "bench/measure_call.hpp"

#include <algorithm>
#include <vector>

#include "core/error.hpp"
#include "core/statistics.hpp"
#include "measure/timing.hpp"

namespace moetune {
namespace {

constexpr int kMaxSamples = 20;
constexpr int kWarmCalls = 4;  // where the budget has room for so many, one is spent on warming up

Timing time_stream(const std::function<void(int)>& enqueue, const Stream& stream,
                   const StreamSamples& plan) {
  const Event begin;
  const Event end;
  std::vector<double> samples;
  int routing = 1;  // the check was of routing 0: its weights are the likeliest in a cache
  for (int i = 0; i < plan.num_samples; ++i) {
    begin.record(stream);
    for (int call = 0; call < plan.calls; ++call) {
      enqueue(routing % kBenchRoutings);
      ++routing;
    }
    end.record(stream);
    samples.push_back(elapsed_us(begin, end) / plan.calls);
  }
  std::sort(samples.begin(), samples.end());
  return {percentile(samples, 50), percentile(samples, 10), percentile(samples, 90),
          static_cast<int>(samples.size()), 0};
}

}  // namespace

StreamSamples plan_samples(double call_s, double budget_s, int num_routings) {
  // All routings in a sample, as in a graph, where that leaves a few samples.
  constexpr int kFewSamples = 4;
  StreamSamples plan{num_routings, 1};
  if (call_s * num_routings * kFewSamples > budget_s) plan.calls = 1;
  const double fit = budget_s / std::max(call_s * plan.calls, 1e-9);
  plan.num_samples = static_cast<int>(std::clamp(fit, 1.0, static_cast<double>(kMaxSamples)));
  return plan;
}

MeasuredCall measure_call(const Layer& layer, const TokenBatch& batch, const LayerCall& call) {
  const Stream& stream = layer.stream();
  const Event begin;
  const Event end;
  const auto timed_s = [&](int routing) {
    begin.record(stream);
    call.enqueue(routing);
    end.record(stream);
    return elapsed_us(begin, end) / 1e6;
  };
  double call_s = timed_s(0);
  MeasuredCall measured;
  measured.deviation =
      compare(layer, call.result(), nullptr, batch.reference[call.fp8 ? 1 : 0]->out.get<float>(),
              batch.problem.num_tokens, batch.problem.shape.hidden_size);
  const std::string defect = judge_deviation(measured.deviation, tolerance(call.fp8));
  if (!defect.empty()) throw Error(ErrorKind::failed, "wrong result: " + defect);
  if (call.graph) {
    // Libraries load kernels when they first need them, which a capture does not take.
    for (int r = 1; r < kBenchRoutings; ++r) call.enqueue(r);
    const Graph graph(stream, [&] {
      for (int r = 0; r < kBenchRoutings; ++r) call.enqueue(r);
    });
    bool stopped = false;
    measured.calls_a_sample = kBenchRoutings;
    measured.timing = time_graph(
        graph, stream, {.num_calls = kBenchRoutings, .num_samples = kMaxSamples}, stopped);
    return measured;
  }
  // A first call also loads a library's kernels.
  if (call_s * kWarmCalls < call.budget_s) call_s = timed_s(1);
  const StreamSamples plan = plan_samples(call_s, call.budget_s, kBenchRoutings);
  measured.calls_a_sample = plan.calls;
  measured.timing = time_stream(call.enqueue, stream, plan);
  return measured;
}

}  // namespace moetune
