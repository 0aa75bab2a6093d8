#include "report/serving_report.hpp"

#include <fmt/format.h>

#include "report/summary.hpp"
#include "report/text_table.hpp"

namespace moetune {
namespace {

using Json = nlohmann::ordered_json;

constexpr double kMsPerS = 1e3;
constexpr double kPercent = 100;

constexpr const char* kScope =
    "only the MoE layers take time: attention, norms and sampling are not simulated";

// "12.3 +-0.4": a mean and half of its 95 % confidence interval, which one repeat does not have.
std::string cell(const Interval& interval, double unit, int digits, std::size_t num_repeats) {
  if (num_repeats < 2) return fmt::format("{:.{}f}", interval.mean * unit, digits);
  return fmt::format("{:.{}f} +-{:.{}f}", interval.mean * unit, digits, interval.half_width * unit,
                     digits);
}

std::string steps_as(const ServingSetup& setup) {
  const std::string scaled =
      setup.num_launched == setup.num_layers
          ? fmt::format("{} layers", setup.num_layers)
          : fmt::format("{} layers, of which {} are launched and their time scaled",
                        setup.num_layers, setup.num_launched);
  return fmt::format("{}; {}", scaled,
                     setup.reused ? "step times MEASURED ONCE a padded token count and reused"
                                  : "every step is launched on the GPU and takes what that took");
}

std::string heading(const BenchRun& run, const ServingSetup& setup, std::size_t num_repeats) {
  const Workload& w = setup.workload;
  std::string text =
      fmt::format("{}, driver {}, {}, {}, {} routing\na step: at most {} tokens, {}\n{}\n",
                  run.gpu.name, run.gpu.driver, setup.model, to_string(setup.problem.dtype),
                  to_string(run.routing), setup.problem.num_tokens, steps_as(setup), kScope);
  if (setup.trace.empty()) {
    text +=
        fmt::format("Poisson arrivals for {:g} s, prompts of {} and outputs of {} tokens (means)",
                    w.duration_s, w.prompt_tokens, w.output_tokens);
  } else {
    text += fmt::format("arrivals of {}", setup.trace);
  }
  text += fmt::format("; {} repeats{}\n", num_repeats,
                      num_repeats > 1 ? ", mean +- 95 % confidence" : "");
  const auto limit = [](double value_s) {
    return value_s > 0 ? fmt::format("{:g} s", value_s) : std::string("any");
  };
  text += fmt::format(
      "success: not turned away after {} of waiting, first token within {}, then within {} a "
      "token\n",
      limit(setup.timeout_s), limit(setup.objectives.first_token_s),
      limit(setup.objectives.time_per_token_s));
  return text;
}

Json interval_json(const Interval& interval) {
  return {{"mean", interval.mean}, {"half_width_95", interval.half_width}};
}
Json percentiles_json(const Percentiles<Interval>& p) {
  return {
      {"p50", interval_json(p.p50)}, {"p95", interval_json(p.p95)}, {"p99", interval_json(p.p99)}};
}

}  // namespace

double throughput_over_reference(const ServingRow& row, std::span<const ServingRow> rows) {
  for (const ServingRow& other : rows) {
    if (other.plans != "reference" || other.concurrency != row.concurrency) continue;
    const double reference = over_repeats(other.repeats).output_tokens_per_s.mean;
    if (reference > 0) return over_repeats(row.repeats).output_tokens_per_s.mean / reference;
  }
  return 0;
}

std::string serving_text(const BenchRun& run, const ServingSetup& setup,
                         std::span<const ServingRow> rows) {
  TextTable table({"concurrency", "<plans", "requests/s", "output tokens/s", "first token ms p50",
                   "p95", "p99", "ms/token p50", "p95", "p99", "latency s p50", "p95", "p99",
                   "success %", "busy %", "tokens/s over reference"});
  std::size_t num_repeats = 0;
  for (const ServingRow& row : rows) {
    const ServingFigures<Interval> f = over_repeats(row.repeats);
    num_repeats = row.repeats.size();
    const auto text = [&](const Interval& interval, double unit, int digits) {
      return cell(interval, unit, digits, num_repeats);
    };
    table.add({fmt::format("{}", row.concurrency), row.plans, fmt::format("{:.3g}", row.rate_per_s),
               text(f.output_tokens_per_s, 1, 0), text(f.first_token_s.p50, kMsPerS, 1),
               text(f.first_token_s.p95, kMsPerS, 1), text(f.first_token_s.p99, kMsPerS, 1),
               text(f.time_per_token_s.p50, kMsPerS, 2), text(f.time_per_token_s.p95, kMsPerS, 2),
               text(f.time_per_token_s.p99, kMsPerS, 2), text(f.latency_s.p50, 1, 2),
               text(f.latency_s.p95, 1, 2), text(f.latency_s.p99, 1, 2),
               text(f.success_rate, kPercent, 1), text(f.busy_share, kPercent, 1),
               speedup_text(throughput_over_reference(row, rows))});
  }
  return heading(run, setup, num_repeats) + '\n' + table.text();
}

Json serving_row_json(const BenchRun& run, const ServingSetup& setup, const ServingRow& row) {
  const ServingFigures<Interval> f = over_repeats(row.repeats);
  return {{"kind", "serving"},
          {"model", setup.model},
          {"dtype", to_string(setup.problem.dtype)},
          {"num_tokens", setup.problem.num_tokens},
          {"routing", to_string(run.routing)},
          {"source", to_string(Source::measured)},
          {"plans", row.plans},
          {"concurrency", row.concurrency},
          {"rate_per_s", row.rate_per_s},
          {"num_repeats", row.repeats.size()},
          {"output_tokens_per_s", interval_json(f.output_tokens_per_s)},
          {"step_tokens_per_s", interval_json(f.step_tokens_per_s)},
          {"first_token_s", percentiles_json(f.first_token_s)},
          {"time_per_token_s", percentiles_json(f.time_per_token_s)},
          {"latency_s", percentiles_json(f.latency_s)},
          {"success_rate", interval_json(f.success_rate)},
          {"busy_share", interval_json(f.busy_share)},
          {"num_steps", row.num_steps},
          {"num_launches", row.num_launches},
          {"setup",
           {{"num_layers", setup.num_layers},
            {"num_launched", setup.num_launched},
            {"step_times", setup.reused ? "measured once" : "launched"},
            {"scope", kScope},
            {"trace", setup.trace},
            {"duration_s", setup.workload.duration_s},
            {"prompt_tokens", setup.workload.prompt_tokens},
            {"output_tokens", setup.workload.output_tokens},
            {"seed", setup.workload.seed},
            {"timeout_s", setup.timeout_s},
            {"first_token_objective_s", setup.objectives.first_token_s},
            {"time_per_token_objective_s", setup.objectives.time_per_token_s}}},
          {"command", run.command},
          {"commit", run.commit},
          {"date", run.date}};
}

Json serving_json(const BenchRun& run, const ServingSetup& setup,
                  std::span<const ServingRow> rows) {
  Json json = run_json(run);
  for (const ServingRow& row : rows) {
    Json item = serving_row_json(run, setup, row);
    item["tokens_per_s_over_reference"] = positive_or_null(throughput_over_reference(row, rows));
    json["rows"].push_back(std::move(item));
  }
  return json;
}

}  // namespace moetune
