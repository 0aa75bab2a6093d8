#include "search/legal_points.hpp"

#include <random>
#include <utility>

#include "search/draw.hpp"

namespace moetune {

std::uint64_t LegalPoints::num_rejected() const {
  std::uint64_t sum = 0;
  for (const auto& [rule, counted] : rejected) sum += counted.count;
  return sum;
}

// An odometer over one point that changes in place, and the constraints alone: a space has 10^5 raw
// points, and what at() and reject() do besides is half the time.
LegalPoints enumerate(const SearchSpace& space) {
  LegalPoints legal;
  if (space.size() == 0) return legal;
  const auto& parameters = space.parameters;
  std::vector<RejectedRule> rejected(space.constraints.size());
  std::vector<std::size_t> digits(parameters.size(), 0);
  Point point = space.at(0);
  while (true) {
    bool is_legal = true;
    for (std::size_t rule = 0; rule < space.constraints.size() && is_legal; ++rule) {
      auto reason = space.constraints[rule].violation(point);
      if (!reason) continue;
      is_legal = false;
      if (rejected[rule].count++ == 0) rejected[rule].example = *std::move(reason);
    }
    if (is_legal) legal.points.push_back(point);

    std::size_t digit = parameters.size();
    for (; digit > 0; --digit) {
      const Parameter& parameter = parameters[digit - 1];
      std::size_t& position = digits[digit - 1];
      position = (position + 1) % parameter.values.size();
      point.set(parameter.name, parameter.values[position]);
      if (position != 0) break;
    }
    if (digit == 0) break;  // even the first parameter is back at its first value
  }
  for (std::size_t rule = 0; rule < rejected.size(); ++rule) {
    if (rejected[rule].count > 0) {
      // Two constraints may share a name.
      RejectedRule& sum = legal.rejected[space.constraints[rule].name];
      if (sum.count == 0) sum.example = rejected[rule].example;
      sum.count += rejected[rule].count;
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
