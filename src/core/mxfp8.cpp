#include "core/mxfp8.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "core/error.hpp"

namespace moetune {
namespace {

constexpr double kE4m3Max = 448;
constexpr int kE4m3Bias = 7;
constexpr int kE4m3Least = -6;  // exponent of subnormals, whose step is 2^-9
constexpr int kE8m0Bias = 127;

}  // namespace

std::uint8_t to_e4m3(double value) {
  const unsigned sign = std::signbit(value) ? 0x80U : 0U;
  const double magnitude = std::min(std::abs(value), kE4m3Max);
  int exponent = magnitude > 0 ? std::max(kE4m3Least, std::ilogb(magnitude)) : kE4m3Least;
  auto steps = static_cast<unsigned>(std::nearbyint(std::ldexp(magnitude, 3 - exponent)));
  if (steps == 16) {  // rounded up into the next binade
    steps = 8;
    ++exponent;
  }
  const unsigned bits =
      steps < 8 ? steps : static_cast<unsigned>(exponent + kE4m3Bias) << 3 | (steps - 8);
  return static_cast<std::uint8_t>(sign | bits);
}

double from_e4m3(std::uint8_t bits) {
  const int exponent = bits >> 3 & 15;
  const int mantissa = bits & 7;
  if (exponent == 15 && mantissa == 7) return std::nan("");
  const double magnitude = exponent == 0 ? std::ldexp(mantissa, kE4m3Least - 3)
                                         : std::ldexp(8 + mantissa, exponent - kE4m3Bias - 3);
  return (bits & 0x80) != 0 ? -magnitude : magnitude;
}

std::uint8_t mx_scale(double amax) {
  if (!(amax > 0)) return 0;
  int exponent = std::ilogb(amax) - std::ilogb(kE4m3Max);
  if (amax > std::ldexp(kE4m3Max, exponent)) ++exponent;
  return static_cast<std::uint8_t>(std::clamp(exponent + kE8m0Bias, 0, 254));
}

double from_e8m0(std::uint8_t byte) {
  return std::ldexp(1.0, byte - kE8m0Bias);
}

Mxfp8 quantise_mxfp8(std::span<const float> values) {
  if (values.size() % kMxBlock != 0) {
    throw Error(ErrorKind::input,
                fmt::format("{} values cannot be quantised to MXFP8: a scale is for {}, and rows "
                            "must be a multiple of that",
                            values.size(), kMxBlock));
  }
  Mxfp8 quantised;
  quantised.values.reserve(values.size());
  for (std::size_t first = 0; first < values.size(); first += kMxBlock) {
    const auto block = values.subspan(first, kMxBlock);
    double amax = 0;
    for (const float value : block) amax = std::max(amax, std::abs(static_cast<double>(value)));
    quantised.scales.push_back(mx_scale(amax));
    const double scale = from_e8m0(quantised.scales.back());
    for (const float value : block)
      quantised.values.push_back(to_e4m3(static_cast<double>(value) / scale));
  }
  return quantised;
}

double mxfp8_error(const Mxfp8& quantised, std::span<const float> values) {
  double error = 0;
  double norm = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const auto value = static_cast<double>(values[i]);
    const double got = from_e4m3(quantised.values[i]) * from_e8m0(quantised.scales[i / kMxBlock]);
    error += (got - value) * (got - value);
    norm += value * value;
  }
  return norm > 0 ? std::sqrt(error / norm) : 0;
}

}  // namespace moetune
