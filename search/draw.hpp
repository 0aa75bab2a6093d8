// Random numbers that are the same on every machine: the standard library's distributions differ
// between implementations, its generators do not.
#pragma once

#include <cstdint>
#include <random>

namespace moetune {

// Uniform in [0, bound).
inline std::uint64_t draw_below(std::uint64_t bound, std::mt19937_64& generator) {
  const std::uint64_t biased = (std::mt19937_64::max() % bound + 1) % bound;  // 2^64 mod bound
  std::uint64_t value = generator();
  while (value < biased) value = generator();
  return value % bound;
}

// Uniform in [0, 1), a multiple of 2^-53.
inline double draw_unit(std::mt19937_64& generator) {
  return static_cast<double>(generator() >> 11) * 0x1p-53;
}

}  // namespace moetune
