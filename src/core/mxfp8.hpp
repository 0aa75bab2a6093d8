// MXFP8 on the host, by definition: what the kernel is compared with. OCP Microscaling Formats 1.0.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace moetune {

inline constexpr int kMxBlock = 32;  // values that share a scale

// e4m3fn: sign, 4 exponent bits (bias 7), 3 mantissa bits, no infinities, at most 448.
std::uint8_t to_e4m3(double value);  // nearest, ties to even, saturating; `value` is finite
double from_e4m3(std::uint8_t bits);

// A scale is 2^(byte - 127). The least one that takes `amax` to at most 448; 0 for amax 0. The
// specification's recipe rounds down instead, and clips what then exceeds 448.
std::uint8_t mx_scale(double amax);
double from_e8m0(std::uint8_t byte);

struct Mxfp8 {
  std::vector<std::uint8_t> values;  // e4m3, as many as there are inputs
  std::vector<std::uint8_t> scales;  // e8m0, one for kMxBlock values
};
// `values` is a multiple of kMxBlock long, and so are its rows; throws Error(input) when it is not.
Mxfp8 quantise_mxfp8(std::span<const float> values);
// ||dequantised - values|| / ||values||; 0 for zeros.
double mxfp8_error(const Mxfp8& quantised, std::span<const float> values);

}  // namespace moetune
