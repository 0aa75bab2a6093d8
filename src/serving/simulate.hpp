// A server with continuous batching, as a discrete-event simulation. Pure: what a step takes is
// asked of the caller.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "serving/requests.hpp"

namespace moetune {

struct ServerOptions {
  std::int64_t token_budget = 2048;  // tokens a step, at least `concurrency`
  std::int64_t concurrency = 64;     // requests worked on at a time; others wait
  double timeout_s = 0;              // one that waits longer is turned away; 0: never
};

struct RequestOutcome {
  ServingRequest request;
  bool finished = false;     // false: turned away
  double first_token_s = 0;  // points in time
  double finish_s = 0;
};

struct ServingRun {
  std::vector<RequestOutcome> outcomes;  // in the order in which they ended
  double end_s = 0;                      // when the last one did
  double busy_s = 0;                     // in steps
  std::int64_t num_steps = 0;
  std::int64_t num_step_tokens = 0;  // prefill and decode, over all steps
};

// Seconds that a step over `num_tokens` tokens takes, more than 0.
using StepTime = std::function<double(std::int64_t num_tokens)>;

// Requests are taken in order of arrival. A step holds one token of every request that has its
// prompt behind it; what remains of the budget goes to prompts, the oldest first, in parts where
// they do not fit. The step that ends a prompt gives the first output token.
ServingRun simulate(std::span<const ServingRequest> requests, const ServerOptions& options,
                    const StepTime& step_time);

// Token counts that steps are padded to, as servers do that keep a CUDA graph for each: 1, 2, 4,
// then multiples of 8 to 256, of 16 to 512, of 64 to 2048, of 256 beyond, and `most` itself.
std::vector<std::int64_t> padded_counts(std::int64_t most);

// The arrival rate that keeps `load` of the places busy (Little's law): load * concurrency over the
// time a mean request takes when all places are. `step_time` is asked for one count.
double rate_for_load(const Workload& workload, const ServerOptions& options, double load,
                     const StepTime& step_time);

}  // namespace moetune
