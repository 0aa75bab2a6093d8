#include "core/problem.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "core/error.hpp"
#include "core/text.hpp"

namespace moetune {
namespace {

constexpr std::array<std::pair<Dtype, std::string_view>, 3> kDtypes = {
    {{Dtype::bf16, "bf16"}, {Dtype::fp8_block, "fp8_block"}, {Dtype::fp8_tensor, "fp8_tensor"}}};

// Kernels index rows, columns and experts with 32 bits.
constexpr std::int64_t kMaxSize = std::numeric_limits<std::int32_t>::max();

template <class T>
bool parse_number(std::string_view text, T& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc{} && end == text.data() + text.size();
}

[[noreturn]] void throw_input(const std::string& message) {
  throw Error(ErrorKind::input, message);
}

void check_size(std::string_view name, std::int64_t value) {
  if (value <= 0) throw_input(fmt::format("{} is {}, it must be at least 1", name, value));
  if (value > kMaxSize)
    throw_input(fmt::format("{} is {}, at most {} works", name, value, kMaxSize));
}

void check_multiple(std::string_view name, std::int64_t value, Dtype dtype) {
  const std::int64_t multiple = dtype == Dtype::bf16 ? 8 : dtype == Dtype::fp8_block ? 128 : 16;
  if (value % multiple == 0) return;
  const char* remedy = "choose --shape or --tp so that it is";
  if (dtype != Dtype::bf16 && value % 16 == 0) {
    remedy = "use --dtype fp8_tensor or bf16";
  } else if (dtype != Dtype::bf16 && value % 8 == 0) {
    remedy = "use --dtype bf16";
  }
  throw_input(fmt::format("{} {} is not a multiple of {}, which {} needs; {}", name, value,
                          multiple, to_string(dtype), remedy));
}

double ceil_div(std::int64_t a, std::int64_t b) {
  const std::int64_t quotient = (a + b - 1) / b;
  return static_cast<double>(quotient);
}

}  // namespace

std::string_view to_string(Dtype dtype) {
  return kDtypes.at(static_cast<std::size_t>(dtype)).second;
}

Dtype parse_dtype(std::string_view text) {
  std::vector<std::string> names;
  for (const auto& [dtype, name] : kDtypes) {
    if (name == text) return dtype;
    names.emplace_back(name);
  }
  const std::string near = nearest(text, names);
  throw Error(ErrorKind::usage,
              fmt::format("unknown dtype '{}'{}; known are {}", text,
                          near.empty() ? "" : fmt::format(", did you mean {}?", near),
                          fmt::join(names, ", ")));
}

std::string to_string(const Routing& routing) {
  switch (routing.kind) {
    case RoutingKind::zipf:
      return fmt::format("zipf:{}", routing.exponent);
    case RoutingKind::hot:
      return fmt::format("hot:{}", routing.num_hot);
    case RoutingKind::file:
      return "file:" + routing.path;
    case RoutingKind::uniform:
      break;
  }
  return "uniform";
}

Routing parse_routing(std::string_view text) {
  const std::size_t colon = text.find(':');
  const std::string_view name = text.substr(0, colon);
  const std::string_view value =
      colon == std::string_view::npos ? std::string_view() : text.substr(colon + 1);
  const auto fail = [&](std::string_view why) {
    return Error(ErrorKind::usage,
                 fmt::format("bad routing '{}': {}; use uniform, zipf:EXPONENT, hot:N or file:PATH",
                             text, why));
  };
  Routing routing;
  if (name == "uniform") {
    if (colon != std::string_view::npos) throw fail("uniform takes no value");
  } else if (name == "zipf") {
    routing.kind = RoutingKind::zipf;
    const bool given = colon != std::string_view::npos;
    if (given && (!parse_number(value, routing.exponent) || !std::isfinite(routing.exponent) ||
                  routing.exponent <= 0)) {
      throw fail("the exponent must be a positive number");
    }
  } else if (name == "hot") {
    routing.kind = RoutingKind::hot;
    if (!parse_number(value, routing.num_hot) || routing.num_hot <= 0)
      throw fail("the number of hot experts must be a positive integer");
  } else if (name == "file") {
    routing.kind = RoutingKind::file;
    routing.path = value;
    if (value.empty()) throw fail("the path is missing");
  } else {
    throw fail("unknown kind");
  }
  return routing;
}

void check(const Problem& problem) {
  const LayerShape& shape = problem.shape;
  check_size("num_tokens", problem.num_tokens);
  check_size("num_experts", shape.num_experts);
  check_size("top_k", shape.top_k);
  check_size("hidden_size", shape.hidden_size);
  check_size("intermediate_size", shape.intermediate_size);
  if (shape.top_k > shape.num_experts) {
    throw_input(fmt::format("top_k {} is more than the {} experts there are", shape.top_k,
                            shape.num_experts));
  }
  if (problem.num_tokens * shape.top_k > kMaxSize) {
    throw_input(fmt::format("num_tokens {} times top_k {} is more than {}; use fewer tokens",
                            problem.num_tokens, shape.top_k, kMaxSize));
  }
  // As doubles, since the products may overflow; 2^62 bytes is far above any GPU's memory.
  const double limit = std::ldexp(1.0, 62);
  const double row_bytes =
      4.0 * static_cast<double>(2 * shape.intermediate_size + shape.hidden_size);
  const double num_rows = static_cast<double>(problem.num_tokens * shape.top_k);
  if (weight_bytes(shape, Dtype::bf16) >= limit || num_rows * row_bytes >= limit) {
    throw_input(fmt::format("E={} x H={} x I={} at {} tokens overflows 64-bit sizes; check --shape",
                            shape.num_experts, shape.hidden_size, shape.intermediate_size,
                            problem.num_tokens));
  }
  check_multiple("hidden_size", shape.hidden_size, problem.dtype);
  check_multiple("intermediate_size", shape.intermediate_size, problem.dtype);
  const Routing& routing = problem.routing;
  if (routing.kind == RoutingKind::hot &&
      (routing.num_hot < shape.top_k || routing.num_hot > shape.num_experts)) {
    throw_input(fmt::format("routing hot:{} must name between top_k {} and {} experts",
                            routing.num_hot, shape.top_k, shape.num_experts));
  }
}

double expected_active_experts(const LayerShape& shape, std::int64_t num_tokens) {
  const double num_experts = static_cast<double>(shape.num_experts);
  const double picked = static_cast<double>(shape.top_k) / num_experts;
  // log1p and expm1 keep the digits when one expert of thousands is picked.
  return -num_experts * std::expm1(static_cast<double>(num_tokens) * std::log1p(-picked));
}

double weight_bytes(const LayerShape& shape, Dtype dtype) {
  const double num_experts = static_cast<double>(shape.num_experts);
  const double elements = 3.0 * num_experts * static_cast<double>(shape.hidden_size) *
                          static_cast<double>(shape.intermediate_size);
  constexpr std::int64_t kBlock = 128;
  switch (dtype) {
    case Dtype::bf16:
      return 2 * elements;
    case Dtype::fp8_block: {
      const double blocks = (ceil_div(2 * shape.intermediate_size, kBlock) +
                             ceil_div(shape.intermediate_size, kBlock)) *
                            ceil_div(shape.hidden_size, kBlock);
      return elements + 4 * num_experts * blocks;
    }
    case Dtype::fp8_tensor:
      break;
  }
  return elements + 4 * 2 * num_experts;
}

double layer_bytes(const Problem& problem) {
  LayerShape routed = problem.shape;
  if (problem.routing.kind == RoutingKind::hot)
    routed.num_experts = std::min(routed.num_experts, problem.routing.num_hot);
  const double touched = expected_active_experts(routed, problem.num_tokens) /
                         static_cast<double>(problem.shape.num_experts);
  // x and out are bf16 in every dtype.
  const double activations = 2.0 * 2.0 * static_cast<double>(problem.num_tokens) *
                             static_cast<double>(problem.shape.hidden_size);
  return touched * weight_bytes(problem.shape, problem.dtype) + activations;
}

double layer_flops(const Problem& problem) {
  const LayerShape& shape = problem.shape;
  return 6.0 * static_cast<double>(problem.num_tokens) * static_cast<double>(shape.top_k) *
         static_cast<double>(shape.hidden_size) * static_cast<double>(shape.intermediate_size);
}

const std::vector<std::int64_t>& default_token_counts() {
  static const std::vector<std::int64_t> counts = {1,  2,   4,   8,   16,   24,   32,   48,   64,
                                                   96, 128, 256, 512, 1024, 1536, 2048, 3072, 4096};
  return counts;
}

}  // namespace moetune
