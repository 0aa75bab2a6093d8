#include "serving/requests.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <sstream>

#include "core/error.hpp"
#include "core/text.hpp"

namespace moetune {
namespace {

// In (0, 1): the standard's distributions differ between libraries.
double uniform(std::mt19937_64& engine) {
  return (static_cast<double>(engine() >> 11) + 0.5) * 0x1.0p-53;
}

std::int64_t length_around(std::int64_t mean, std::mt19937_64& engine) {
  const double length = (0.5 + uniform(engine)) * static_cast<double>(mean);
  return std::max<std::int64_t>(1, std::llround(length));
}

}  // namespace

std::vector<ServingRequest> poisson_requests(const Workload& workload) {
  std::mt19937_64 engine(workload.seed);
  std::vector<ServingRequest> requests;
  double time_s = 0;
  for (;;) {
    time_s -= std::log(uniform(engine)) / workload.rate_per_s;
    if (time_s >= workload.duration_s && !requests.empty()) return requests;
    const std::int64_t prompt = length_around(workload.prompt_tokens, engine);
    const std::int64_t output = length_around(workload.output_tokens, engine);
    requests.push_back({time_s, prompt, output});
    if (time_s >= workload.duration_s) return requests;
  }
}

std::vector<ServingRequest> read_requests(const std::string& path) {
  std::istringstream text(read_file(path));
  std::vector<ServingRequest> requests;
  std::string line;
  for (int number = 1; std::getline(text, line); ++number) {
    const auto bad = [&](const char* why) {
      return Error(ErrorKind::input, fmt::format("{}:{}: {}: '{}'; give ARRIVAL_S PROMPT_TOKENS "
                                                 "OUTPUT_TOKENS",
                                                 path, number, why, line));
    };
    if (line.starts_with('#')) continue;
    std::string blanks = line;
    std::replace(blanks.begin(), blanks.end(), ',', ' ');
    if (blanks.find_first_not_of(" \t\r") == std::string::npos) continue;
    std::istringstream fields(blanks);
    ServingRequest request;
    fields >> request.arrival_s >> request.prompt_tokens >> request.output_tokens;
    if (!fields) throw bad("not three numbers");
    std::string rest;
    if (fields >> rest) throw bad("more than three numbers");
    if (!(request.arrival_s >= 0) || request.prompt_tokens < 1 || request.output_tokens < 1)
      throw bad("a negative arrival or a length below 1");
    if (!requests.empty() && request.arrival_s < requests.back().arrival_s)
      throw bad("it arrives before the one above");
    requests.push_back(request);
  }
  if (requests.empty()) throw Error(ErrorKind::input, fmt::format("{}: no requests", path));
  return requests;
}

}  // namespace moetune
