#include <algorithm>

#include "core/error.hpp"
#include "search/legal_points.hpp"
#include "search/point_list.hpp"
#include "search/strategies.hpp"

namespace moetune {

std::unique_ptr<Strategy> make_random(const SearchSpace& space, const StrategyOptions& options) {
  if (options.count == 0) {
    throw Error(ErrorKind::usage, "random: 0 points were asked for; give a count of 1 or more");
  }
  std::vector<Point> points = enumerate(space).points;
  shuffle(points, options.seed);
  points.resize(std::min<std::size_t>(points.size(), options.count));
  return std::make_unique<PointList>(std::move(points));
}

}  // namespace moetune
