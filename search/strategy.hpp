// A search strategy proposes points and sees what became of them. One file a strategy.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/point.hpp"
#include "core/trial.hpp"

namespace moetune {

class Strategy {
 public:
  virtual ~Strategy() = default;
  // The next legal point, or nothing when the strategy is done. May be called several times before
  // observe(): the caller compiles ahead of measuring.
  virtual std::optional<Point> next() = 0;
  // Called once for every point next() gave.
  virtual void observe(const Point& point, const Trial& trial) = 0;
  // How many points it will propose in all; an estimate is fine. For the progress display.
  virtual std::uint64_t expected() const = 0;
  // One line the user should know before it starts, or "": the start point had to move.
  virtual std::string note() const { return {}; }
};

struct StrategyOptions {
  std::uint64_t count = 0;  // random: how many points
  std::uint64_t seed = 0;
  std::optional<Point> start = {};  // ablation: the point to vary around; none: the reference point
};

// "grid", "random", "ablation". Throws Error(usage) naming the nearest.
std::unique_ptr<Strategy> make_strategy(std::string_view name, const SearchSpace& space,
                                        const StrategyOptions& options);
std::vector<std::string_view> strategy_names();

}  // namespace moetune
