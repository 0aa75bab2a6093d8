#include "search/coordinates.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "core/error.hpp"

namespace moetune {

Coordinates::Coordinates(const SearchSpace& space, std::span<const Point> points)
    : parameters_(space.parameters) {
  positions_.reserve(points.size() * parameters_.size());
  for (const Point& point : points) {
    const auto found = positions(point);
    if (!found) {
      throw Error(ErrorKind::input,
                  fmt::format("the point {{{}}} is not on its space's grid", point.key()));
    }
    positions_.insert(positions_.end(), found->begin(), found->end());
    index_.emplace(key(*found), index_.size());
  }
}

int Coordinates::num_values(std::size_t parameter) const {
  return static_cast<int>(parameters_[parameter].values.size());
}

std::span<const int> Coordinates::of(std::size_t point) const {
  return {positions_.data() + point * parameters_.size(), parameters_.size()};
}

std::optional<std::vector<int>> Coordinates::positions(const Point& point) const {
  std::vector<int> result;
  result.reserve(parameters_.size());
  for (const Parameter& parameter : parameters_) {
    if (!point.has(parameter.name)) return std::nullopt;
    const auto value = std::ranges::find(parameter.values, point.at(parameter.name));
    if (value == parameter.values.end()) return std::nullopt;
    result.push_back(static_cast<int>(value - parameter.values.begin()));
  }
  return result;
}

std::optional<std::size_t> Coordinates::find(const Point& point) const {
  const auto found = positions(point);
  return found ? find(*found) : std::nullopt;
}

std::optional<std::size_t> Coordinates::find(std::span<const int> positions) const {
  for (std::size_t i = 0; i < parameters_.size(); ++i)
    if (positions[i] < 0 || positions[i] >= num_values(i)) return std::nullopt;
  const auto found = index_.find(key(positions));
  if (found == index_.end()) return std::nullopt;
  return found->second;
}

std::uint64_t Coordinates::key(std::span<const int> positions) const {
  std::uint64_t key = 0;
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    key = key * parameters_[i].values.size() + static_cast<std::uint64_t>(positions[i]);
  }
  return key;
}

}  // namespace moetune
