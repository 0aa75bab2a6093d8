#include <fmt/format.h>
#include <fmt/ranges.h>

#include "core/error.hpp"
#include "core/text.hpp"
#include "search/strategies.hpp"

namespace moetune {
namespace {

using Make = std::unique_ptr<Strategy> (*)(const SearchSpace&, const StrategyOptions&);
constexpr std::pair<std::string_view, Make> kStrategies[] = {
    {"grid", make_grid},
    {"random", make_random},
    {"ablation", make_ablation},
};

}  // namespace

std::unique_ptr<Strategy> make_strategy(std::string_view name, const SearchSpace& space,
                                        const StrategyOptions& options) {
  for (const auto& [known, make] : kStrategies) {
    if (known == name) return make(space, options);
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
