// What a served run came to, and several runs with their confidence intervals.
#pragma once

#include <cstdint>
#include <span>

#include "core/statistics.hpp"
#include "serving/simulate.hpp"

namespace moetune {

// What a request must keep to count as served; 0: anything.
struct Objectives {
  double first_token_s = 0;     // from arrival
  double time_per_token_s = 0;  // mean over a request's tokens after the first
};

// p50, p95 and p99 over requests.
template <typename T>
struct Percentiles {
  T p50{}, p95{}, p99{};
};

template <typename T>
struct ServingFigures {
  T output_tokens_per_s{};          // of finished requests, over the whole run
  T step_tokens_per_s{};            // prefill and decode
  T success_rate{};                 // of all requests: finished within the objectives, 0..1
  T busy_share{};                   // of the run's time, 0..1
  Percentiles<T> first_token_s;     // of finished requests, from arrival
  Percentiles<T> time_per_token_s;  // of those with more than one output token
  Percentiles<T> latency_s;         // from arrival to the last token
};

// Percentiles are 0 where no request finished.
ServingFigures<double> figures_of(const ServingRun& run, const Objectives& objectives);
// Means over repeats with 95 % confidence intervals. `repeats` is not empty.
ServingFigures<Interval> over_repeats(std::span<const ServingFigures<double>> repeats);

}  // namespace moetune
