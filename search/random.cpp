#include <algorithm>

#include "core/error.hpp"
#include "search/legal_points.hpp"
#include "search/point_list.hpp"
#include "search/strategies.hpp"

namespace moetune {

std::unique_ptr<Strategy> make_random(const SearchSpace&, std::vector<Point> legal,
                                      const StrategyOptions& options) {
  if (options.count == 0) {
    throw Error(ErrorKind::usage, "random: 0 points were asked for; give a count of 1 or more");
  }
  shuffle(legal, options.seed);
  legal.resize(std::min<std::size_t>(legal.size(), options.count));
  return std::make_unique<PointList>(std::move(legal));
}

}  // namespace moetune
