#include <fmt/format.h>
#include <fmt/ranges.h>

#include "core/error.hpp"
#include "core/text.hpp"
#include "search/legal_points.hpp"
#include "search/strategies.hpp"

namespace moetune {
namespace {

constexpr std::pair<std::string_view, StrategyMaker*> kStrategies[] = {
    {"grid", make_grid},
    {"random", make_random},
    {"ablation", make_ablation},
    {"guided", make_guided},
    {"differential_evolution", make_differential_evolution},
};

}  // namespace

std::unique_ptr<Strategy> make_strategy(std::string_view name, const SearchSpace& space,
                                        const StrategyOptions& options) {
  return make_strategy(name, space, enumerate(space).points, options);
}

std::unique_ptr<Strategy> make_strategy(std::string_view name, const SearchSpace& space,
                                        std::vector<Point> legal, const StrategyOptions& options) {
  for (const auto& [known, make] : kStrategies) {
    if (known == name) return make(space, std::move(legal), options);
  }
  const auto views = strategy_names();
  const std::vector<std::string> names(views.begin(), views.end());
  const std::string near = nearest(name, names);
  throw Error(ErrorKind::usage,
              fmt::format("no search strategy '{}'; {}", name,
                          near.empty() ? fmt::format("there are {}", fmt::join(names, ", "))
                                       : fmt::format("did you mean '{}'?", near)));
}

std::vector<std::string_view> strategy_names() {
  std::vector<std::string_view> names;
  for (const auto& [name, make] : kStrategies) names.push_back(name);
  return names;
}

}  // namespace moetune
