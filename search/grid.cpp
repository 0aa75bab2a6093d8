#include "search/legal_points.hpp"
#include "search/point_list.hpp"
#include "search/strategies.hpp"

namespace moetune {

std::unique_ptr<Strategy> make_grid(const SearchSpace&, std::vector<Point> legal,
                                    const StrategyOptions& options) {
  shuffle(legal, options.seed);
  return std::make_unique<PointList>(std::move(legal));
}

}  // namespace moetune
