// A strategy that knows all its points beforehand and learns nothing from their trials.
#pragma once

#include <cstddef>
#include <optional>
#include <utility>
#include <vector>

#include "search/strategy.hpp"

namespace moetune {

class PointList : public Strategy {
 public:
  explicit PointList(std::vector<Point> points) : points_(std::move(points)) {}

  std::optional<Point> next() override {
    if (next_ == points_.size()) return std::nullopt;
    return points_[next_++];
  }
  void observe(const Point&, const Trial&) override {}
  std::uint64_t expected() const override { return points_.size(); }

 private:
  std::vector<Point> points_;
  std::size_t next_ = 0;
};

}  // namespace moetune
