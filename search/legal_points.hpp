// The points of a space that break no rule, and why the others do.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "core/point.hpp"

namespace moetune {

struct RejectedRule {
  std::uint64_t count = 0;
  std::string example;  // the reason given for the first point that broke the rule
};

struct LegalPoints {
  std::vector<Point> points;                     // in the space's order
  std::map<std::string, RejectedRule> rejected;  // by the first rule that a point breaks
  std::uint64_t num_rejected() const;
};

// Tries every raw point once: a microsecond or two for each, mostly the constraints.
LegalPoints enumerate(const SearchSpace& space);

// Reorders `points` into a permutation drawn uniformly from `seed`; the same on every machine.
void shuffle(std::vector<Point>& points, std::uint64_t seed);

}  // namespace moetune
