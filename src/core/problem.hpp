// What is computed: one mixture-of-experts layer, apart from how it is computed.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace moetune {

// For kernels, which take 32 bits where that is enough.
constexpr int narrow(std::int64_t value) {
  return static_cast<int>(value);
}

// How weights and activations are stored and multiplied.
//   bf16        both operands bfloat16
//   fp8_block   e4m3; fp32 scales, activations per 1x128 of K, weights per 128x128
//   fp8_tensor  e4m3; fp32 scales, one per expert's weight matrix and one per activation row
enum class Dtype { bf16, fp8_block, fp8_tensor };

std::string_view to_string(Dtype dtype);
Dtype parse_dtype(std::string_view text);  // throws Error(usage) naming the nearest dtype
inline bool is_fp8(Dtype dtype) {
  return dtype != Dtype::bf16;
}

// x[T,H], w13[E,2I,H] (gate rows 0..I-1, up rows I..2I-1), w2[E,H,I], top-K routing.
// As one GPU sees it: after --tp has divided I and --ep has divided E.
struct LayerShape {
  std::string model;  // name for messages and file names; "custom" for --shape
  std::int64_t num_experts = 0;
  std::int64_t top_k = 0;
  std::int64_t hidden_size = 0;
  std::int64_t intermediate_size = 0;
  bool operator==(const LayerShape&) const = default;
};

// How tokens choose experts.
//   uniform    softmax of normal logits, top-k, weights renormalised
//   zipf:S     expert popularity falls as rank^-S
//   hot:N      every token picks its top_k among the same N experts (N >= top_k)
//   file:PATH  expert ids of a real trace, top_k a line
enum class RoutingKind { uniform, zipf, hot, file };

struct Routing {
  RoutingKind kind = RoutingKind::uniform;
  double exponent = 1.0;     // zipf
  std::int64_t num_hot = 0;  // hot
  std::string path;          // file
  bool operator==(const Routing&) const = default;
};

std::string to_string(const Routing& routing);  // the form parse_routing reads
Routing parse_routing(std::string_view text);   // throws Error(usage)

struct Problem {
  LayerShape shape;
  Dtype dtype = Dtype::bf16;
  std::int64_t num_tokens = 1;
  Routing routing;
  std::uint64_t seed = 0;
};

// The token counts that tables cover unless told otherwise.
const std::vector<std::int64_t>& default_token_counts();

// Throws Error(input) when sizes are not positive, overflow, top_k > num_experts, or H or I is not
// a multiple of what the dtype needs (bf16 8; fp8_block 128; fp8_tensor 16).
void check(const Problem& problem);

// Experts that at least one token picks, expected under uniform routing: E (1 - (1 - K/E)^T).
double expected_active_experts(const LayerShape& shape, std::int64_t num_tokens);
// Bytes of all experts' weights (scales included) in `dtype`.
double weight_bytes(const LayerShape& shape, Dtype dtype);
// Bytes that must move for one layer call: touched experts' weights, x and out.
double layer_bytes(const Problem& problem);
// Floating-point operations of one layer call: 6 T K H I.
double layer_flops(const Problem& problem);

}  // namespace moetune
