#include "serving/statistics.hpp"

#include <algorithm>
#include <vector>

namespace moetune {
namespace {

Percentiles<double> percentiles_of(std::vector<double> values) {
  if (values.empty()) return {};
  std::sort(values.begin(), values.end());
  return {percentile(values, 50), percentile(values, 95), percentile(values, 99)};
}

// Every figure of `of`, from the same figure of all repeats.
class OverRepeats {
 public:
  explicit OverRepeats(std::span<const ServingFigures<double>> repeats) : repeats_(repeats) {}

  Interval operator()(double ServingFigures<double>::*figure) const {
    return interval([&](const ServingFigures<double>& one) { return one.*figure; });
  }
  Percentiles<Interval> operator()(Percentiles<double> ServingFigures<double>::*figure) const {
    return {interval([&](const ServingFigures<double>& one) { return (one.*figure).p50; }),
            interval([&](const ServingFigures<double>& one) { return (one.*figure).p95; }),
            interval([&](const ServingFigures<double>& one) { return (one.*figure).p99; })};
  }

 private:
  template <typename Get>
  Interval interval(const Get& get) const {
    std::vector<double> values;
    values.reserve(repeats_.size());
    for (const ServingFigures<double>& one : repeats_) values.push_back(get(one));
    return mean_interval(values);
  }
  std::span<const ServingFigures<double>> repeats_;
};

}  // namespace

ServingFigures<double> figures_of(const ServingRun& run, const Objectives& objectives) {
  std::vector<double> first_token_s;
  std::vector<double> time_per_token_s;
  std::vector<double> latency_s;
  std::int64_t output_tokens = 0;
  std::int64_t num_served = 0;
  const auto keeps = [](double value, double objective) {
    return objective <= 0 || value <= objective;
  };
  for (const RequestOutcome& outcome : run.outcomes) {
    if (!outcome.finished) continue;
    const std::int64_t more_tokens = outcome.request.output_tokens - 1;
    const double waited = outcome.first_token_s - outcome.request.arrival_s;
    double per_token = 0;
    if (more_tokens > 0) {
      per_token = (outcome.finish_s - outcome.first_token_s) / static_cast<double>(more_tokens);
      time_per_token_s.push_back(per_token);
    }
    first_token_s.push_back(waited);
    latency_s.push_back(outcome.finish_s - outcome.request.arrival_s);
    output_tokens += outcome.request.output_tokens;
    if (keeps(waited, objectives.first_token_s) && keeps(per_token, objectives.time_per_token_s))
      ++num_served;
  }
  ServingFigures<double> figures;
  if (run.outcomes.empty() || !(run.end_s > 0)) return figures;
  figures.output_tokens_per_s = static_cast<double>(output_tokens) / run.end_s;
  figures.step_tokens_per_s = static_cast<double>(run.num_step_tokens) / run.end_s;
  figures.success_rate = static_cast<double>(num_served) / static_cast<double>(run.outcomes.size());
  figures.busy_share = run.busy_s / run.end_s;
  figures.first_token_s = percentiles_of(std::move(first_token_s));
  figures.time_per_token_s = percentiles_of(std::move(time_per_token_s));
  figures.latency_s = percentiles_of(std::move(latency_s));
  return figures;
}

ServingFigures<Interval> over_repeats(std::span<const ServingFigures<double>> repeats) {
  using F = ServingFigures<double>;
  const OverRepeats over(repeats);
  return {over(&F::output_tokens_per_s),
          over(&F::step_tokens_per_s),
          over(&F::success_rate),
          over(&F::busy_share),
          over(&F::first_token_s),
          over(&F::time_per_token_s),
          over(&F::latency_s)};
}

}  // namespace moetune
