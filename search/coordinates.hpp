// Points of a space as positions along its parameters: what strategies that learn compute with.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "core/point.hpp"

namespace moetune {

class Coordinates {
 public:
  // Every point holds a value of each parameter's list.
  Coordinates(const SearchSpace& space, std::span<const Point> points);

  std::size_t num_points() const { return index_.size(); }
  std::size_t num_parameters() const { return parameters_.size(); }
  int num_values(std::size_t parameter) const;
  // [num_parameters], each the position of the point's value in its parameter's list.
  std::span<const int> of(std::size_t point) const;
  // The positions of any point; nothing when it lacks a parameter or holds a value off the grid.
  std::optional<std::vector<int>> positions(const Point& point) const;
  // Which of the points this is; nothing when it is none of them.
  std::optional<std::size_t> find(const Point& point) const;
  std::optional<std::size_t> find(std::span<const int> positions) const;

 private:
  std::uint64_t key(std::span<const int> positions) const;  // the mixed radix that SearchSpace has

  std::vector<Parameter> parameters_;
  std::vector<int> positions_;  // [num_points, num_parameters]
  std::unordered_map<std::uint64_t, std::size_t> index_;
};

}  // namespace moetune
