// A search strategy proposes points and sees what became of them. One file a strategy.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/point.hpp"
#include "core/trial.hpp"

namespace moetune {

// What a search at a neighbouring token count saw of a point.
struct Observation {
  Point point;
  double predicted_us = 0;  // by the analytic model, at that token count
  double time_us = 0;       // 0: the point failed
};

class Strategy {
 public:
  virtual ~Strategy() = default;
  // The next legal point, or nothing when the strategy is done or first wants to see how earlier
  // ones did. May be called several times before observe(): the caller compiles ahead of measuring.
  virtual std::optional<Point> next() = 0;
  // Called once for every point next() gave.
  virtual void observe(const Point& point, const Trial& trial) = 0;
  // How many points it will propose in all; an estimate is fine. For the progress display.
  virtual std::uint64_t expected() const = 0;
  // One line the user should know before it starts, or "": the start point had to move.
  virtual std::string note() const { return {}; }

  // Those that learn. Before the first next(): what neighbouring token counts showed.
  virtual void learn(std::span<const Observation>) {}
  // Before each round of next(): the fastest time so far, whatever kernel it is of. A strategy
  // whose own points cannot beat it may stop.
  virtual void aim(double /*best_us*/) {}
  // Up to `count` points it may well propose later: worth compiling while nothing else is.
  virtual std::vector<Point> likely(std::size_t /*count*/) const { return {}; }
};

struct StrategyOptions {
  std::uint64_t count =
      0;  // random: how many points; others that know no end: at most, 0: no limit
  std::uint64_t seed = 0;
  std::optional<Point> start = {};  // ablation: the point to vary around; none: the reference point
  // The analytic model: an ordering of points to start from. None: all alike.
  std::function<double(const Point&)> predict_us = {};
};

// A strategy by its name, over `legal`: the points of `space` that break no rule. Throws
// Error(usage) naming the nearest known strategy.
std::unique_ptr<Strategy> make_strategy(std::string_view name, const SearchSpace& space,
                                        std::vector<Point> legal, const StrategyOptions& options);
// The same, enumerating the space.
std::unique_ptr<Strategy> make_strategy(std::string_view name, const SearchSpace& space,
                                        const StrategyOptions& options);
std::vector<std::string_view> strategy_names();

}  // namespace moetune
