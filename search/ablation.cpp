#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "core/error.hpp"
#include "search/point_list.hpp"
#include "search/strategies.hpp"

namespace moetune {
namespace {

class Ablation : public PointList {
 public:
  Ablation(std::vector<Point> points, std::string note)
      : PointList(std::move(points)), note_(std::move(note)) {}
  std::string note() const override { return note_; }

 private:
  std::string note_;
};

// The start with every parameter of the space, in the space's order.
Point complete(const SearchSpace& space, const Point& start) {
  for (const auto& [name, value] : start.values()) {
    if (space.find(name) == nullptr) {
      throw Error(ErrorKind::input,
                  fmt::format("start point: the space has no parameter {}; `moe-tune space` lists "
                              "those it has",
                              name));
    }
  }
  Point point;
  for (const auto& parameter : space.parameters) {
    point.set(parameter.name, start.value_or(parameter.name, parameter.reference));
  }
  return point;
}

// Position among the parameter's values, or of the value that is numerically nearest.
std::ptrdiff_t position(const Parameter& parameter, int value) {
  const auto nearer = [value](int a, int b) { return std::abs(a - value) < std::abs(b - value); };
  return std::ranges::min_element(parameter.values, nearer) - parameter.values.begin();
}

std::pair<int, std::ptrdiff_t> distance(const SearchSpace& space, const Point& a, const Point& b) {
  int num_changed = 0;
  std::ptrdiff_t num_steps = 0;
  for (const auto& parameter : space.parameters) {
    const int left = a.at(parameter.name);
    const int right = b.at(parameter.name);
    num_changed += left != right;
    num_steps += std::abs(position(parameter, left) - position(parameter, right));
  }
  return {num_changed, num_steps};
}

std::optional<Point> nearest_legal(const SearchSpace& space, std::vector<Point> legal,
                                   const Point& start) {
  const auto nearer = [&](const Point& a, const Point& b) {
    return distance(space, a, start) < distance(space, b, start);
  };
  const auto found = std::ranges::min_element(legal, nearer);
  if (found == legal.end()) return std::nullopt;
  return std::move(*found);
}

// "BLOCK_SIZE_M 512 -> 256, NUM_STAGES 8 -> 4"
std::string changes(const SearchSpace& space, const Point& from, const Point& to) {
  std::string text;
  for (const auto& parameter : space.parameters) {
    const int before = from.at(parameter.name);
    const int after = to.at(parameter.name);
    if (before == after) continue;
    text += fmt::format("{}{} {} -> {}", text.empty() ? "" : ", ", parameter.name, before, after);
  }
  return text;
}

}  // namespace

std::unique_ptr<Strategy> make_ablation(const SearchSpace& space, std::vector<Point> legal,
                                        const StrategyOptions& options) {
  Point start = complete(space, options.start.value_or(space.reference()));
  std::string note;
  if (const auto rejection = space.reject(start, true)) {
    const auto moved = nearest_legal(space, std::move(legal), start);
    const std::string why =
        fmt::format("the start point breaks rule '{}' ({})", rejection->rule, rejection->reason);
    if (!moved) {
      return std::make_unique<Ablation>(std::vector<Point>{},
                                        "ablation: " + why + " and no point of the space is legal");
    }
    note = fmt::format("ablation: {}; it moved to the nearest legal point: {}", why,
                       changes(space, start, *moved));
    start = *moved;
  }
  std::vector<Point> points{start};
  for (const auto& parameter : space.parameters) {
    for (const int value : parameter.values) {
      if (value == start.at(parameter.name)) continue;
      Point point = start;
      point.set(parameter.name, value);
      if (!space.reject(point)) points.push_back(std::move(point));
    }
  }
  return std::make_unique<Ablation>(std::move(points), std::move(note));
}

}  // namespace moetune
