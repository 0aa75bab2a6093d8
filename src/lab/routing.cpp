#include "lab/routing.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>
#include <random>
#include <sstream>
#include <string>

#include "core/error.hpp"
#include "core/text.hpp"

namespace moetune {
namespace {

// Normal numbers by Box-Muller: std::normal_distribution differs between standard libraries.
class Normal {
 public:
  explicit Normal(std::uint64_t seed) : engine_(seed) {}
  double operator()() {
    if (has_spare_) {
      has_spare_ = false;
      return spare_;
    }
    const double radius = std::sqrt(-2.0 * std::log(uniform()));
    const double angle = 2.0 * std::numbers::pi * uniform();
    spare_ = radius * std::sin(angle);
    has_spare_ = true;
    return radius * std::cos(angle);
  }
  double uniform() { return (static_cast<double>(engine_() >> 11) + 0.5) * 0x1.0p-53; }
  std::uint64_t below(std::uint64_t bound) {
    return static_cast<std::uint64_t>(uniform() * static_cast<double>(bound));
  }

 private:
  std::mt19937_64 engine_;
  double spare_ = 0;
  bool has_spare_ = false;
};

// A random permutation of the experts, so that popular ones lie anywhere.
std::vector<std::int32_t> shuffled_experts(std::int64_t num_experts, Normal& random) {
  std::vector<std::int32_t> experts(static_cast<std::size_t>(num_experts));
  std::iota(experts.begin(), experts.end(), 0);
  for (std::size_t i = experts.size(); i > 1; --i) {
    std::swap(experts[i - 1], experts[random.below(i)]);
  }
  return experts;
}

// The experts a trace names, top_k of them a line, separated by blanks or commas.
std::vector<std::int32_t> read_trace(const std::string& path, const LayerShape& shape) {
  std::istringstream text(read_file(path));
  std::vector<std::int32_t> ids;
  std::string line;
  for (int number = 1; std::getline(text, line); ++number) {
    std::replace(line.begin(), line.end(), ',', ' ');
    std::istringstream fields(line);
    std::vector<std::int32_t> token;
    std::int64_t id = 0;
    while (fields >> id) {
      if (id < 0 || id >= shape.num_experts) {
        throw Error(ErrorKind::input, fmt::format("{}:{}: expert {} is not in 0..{}", path, number,
                                                  id, shape.num_experts - 1));
      }
      if (std::find(token.begin(), token.end(), id) != token.end()) {
        throw Error(ErrorKind::input, fmt::format("{}:{}: expert {} twice", path, number, id));
      }
      token.push_back(static_cast<std::int32_t>(id));
    }
    if (!fields.eof()) {
      throw Error(ErrorKind::input,
                  fmt::format("{}:{}: not a list of expert ids: '{}'", path, number, line));
    }
    if (token.empty()) continue;
    if (static_cast<std::int64_t>(token.size()) != shape.top_k) {
      throw Error(ErrorKind::input, fmt::format("{}:{}: {} expert ids, the model's top_k is {}",
                                                path, number, token.size(), shape.top_k));
    }
    ids.insert(ids.end(), token.begin(), token.end());
  }
  if (ids.empty()) throw Error(ErrorKind::input, fmt::format("{}: no expert ids", path));
  return ids;
}

// Softmax of normal logits over the chosen experts: what renormalised top-k weights look like.
void append_weights(std::size_t top_k, Normal& random, std::vector<float>& weights) {
  std::vector<double> exponentials(top_k);
  for (double& value : exponentials) value = std::exp(random());
  const double sum = std::accumulate(exponentials.begin(), exponentials.end(), 0.0);
  for (const double value : exponentials) weights.push_back(static_cast<float>(value / sum));
}

}  // namespace

RoutingData make_routing(const Problem& problem, int index) {
  const auto num_tokens = static_cast<std::size_t>(problem.num_tokens);
  const auto top_k = static_cast<std::size_t>(problem.shape.top_k);
  Normal random(problem.seed * 1'000'003 + static_cast<std::uint64_t>(index) * 7919 +
                static_cast<std::uint64_t>(problem.num_tokens));
  RoutingData data;
  data.topk_ids.reserve(num_tokens * top_k);
  data.topk_weights.reserve(num_tokens * top_k);

  if (problem.routing.kind == RoutingKind::file) {
    const auto trace = read_trace(problem.routing.path, problem.shape);
    const std::size_t lines = trace.size() / top_k;
    for (std::size_t t = 0; t < num_tokens; ++t) {
      const std::size_t line = (static_cast<std::size_t>(index) * num_tokens + t) % lines;
      const auto first = trace.begin() + static_cast<std::ptrdiff_t>(line * top_k);
      data.topk_ids.insert(data.topk_ids.end(), first, first + static_cast<std::ptrdiff_t>(top_k));
      append_weights(top_k, random, data.topk_weights);
    }
    return data;
  }

  auto experts = shuffled_experts(problem.shape.num_experts, random);
  if (problem.routing.kind == RoutingKind::hot) {
    const std::int64_t count =
        std::clamp(problem.routing.num_hot, problem.shape.top_k, problem.shape.num_experts);
    experts.resize(static_cast<std::size_t>(count));
  }
  // Popularity as a logit offset; -log(-log u) is Gumbel noise, whose top-k is a draw without
  // replacement in proportion to popularity (Kool et al., 2019).
  std::vector<double> offset(experts.size(), 0.0);
  const bool zipf = problem.routing.kind == RoutingKind::zipf;
  if (zipf) {
    for (std::size_t i = 0; i < offset.size(); ++i) {
      offset[i] = -problem.routing.exponent * std::log(static_cast<double>(i + 1));
    }
  }
  std::vector<std::pair<double, std::int32_t>> logits(experts.size());
  for (std::size_t t = 0; t < num_tokens; ++t) {
    for (std::size_t i = 0; i < experts.size(); ++i) {
      const double noise = zipf ? -std::log(-std::log(random.uniform())) : random();
      logits[i] = {offset[i] + noise, experts[i]};
    }
    std::partial_sort(logits.begin(), logits.begin() + static_cast<std::ptrdiff_t>(top_k),
                      logits.end(), std::greater<>());
    for (std::size_t k = 0; k < top_k; ++k) data.topk_ids.push_back(logits[k].second);
    append_weights(top_k, random, data.topk_weights);
  }
  return data;
}

}  // namespace moetune
