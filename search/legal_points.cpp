#include "search/legal_points.hpp"

#include <random>
#include <utility>

namespace moetune {
namespace {

// Uniform in [0, bound). The standard library's distributions differ between implementations, the
// generator does not.
std::uint64_t draw_below(std::uint64_t bound, std::mt19937_64& generator) {
  const std::uint64_t biased = (std::mt19937_64::max() % bound + 1) % bound;  // 2^64 mod bound
  std::uint64_t value = generator();
  while (value < biased) value = generator();
  return value % bound;
}

}  // namespace

std::uint64_t LegalPoints::num_rejected() const {
  std::uint64_t sum = 0;
  for (const auto& [rule, counted] : rejected) sum += counted.count;
  return sum;
}

LegalPoints enumerate(const SearchSpace& space) {
  LegalPoints legal;
  const std::uint64_t size = space.size();
  for (std::uint64_t index = 0; index < size; ++index) {
    Point point = space.at(index);
    if (const auto rejection = space.reject(point)) {
      RejectedRule& rule = legal.rejected[rejection->rule];
      if (rule.count++ == 0) rule.example = rejection->reason;
    } else {
      legal.points.push_back(std::move(point));
    }
  }
  return legal;
}

void shuffle(std::vector<Point>& points, std::uint64_t seed) {
  std::mt19937_64 generator(seed);
  for (std::size_t left = points.size(); left > 1; --left) {
    std::swap(points[left - 1], points[draw_below(left, generator)]);
  }
}

}  // namespace moetune
