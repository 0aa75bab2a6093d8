#include "search/legal_points.hpp"
#include "search/point_list.hpp"
#include "search/strategies.hpp"

namespace moetune {

std::unique_ptr<Strategy> make_grid(const SearchSpace& space, const StrategyOptions& options) {
  std::vector<Point> points = enumerate(space).points;
  shuffle(points, options.seed);
  return std::make_unique<PointList>(std::move(points));
}

}  // namespace moetune
