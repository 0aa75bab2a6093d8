// What arrives at a server: requests by a Poisson process, or from a trace.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace moetune {

struct ServingRequest {
  double arrival_s = 0;
  std::int64_t prompt_tokens = 1;  // both at least 1
  std::int64_t output_tokens = 1;
};

struct Workload {
  double rate_per_s = 1;  // mean arrivals
  double duration_s = 60;
  std::int64_t prompt_tokens = 512;  // means
  std::int64_t output_tokens = 128;
  std::uint64_t seed = 0;
};

// Arrivals in [0, duration_s) with exponential gaps; lengths are uniform from half the mean to one
// and a half of it. The same for the same workload on every machine. Never empty.
std::vector<ServingRequest> poisson_requests(const Workload& workload);

// A trace: a line a request, "ARRIVAL_S PROMPT_TOKENS OUTPUT_TOKENS" with blanks or commas between,
// arrivals in order; empty lines and lines that begin with # are skipped. Throws Error(input)
// naming file and line.
std::vector<ServingRequest> read_requests(const std::string& path);

}  // namespace moetune
