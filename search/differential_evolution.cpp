// Differential evolution, DE/rand/1/bin (Storn, Price: Differential Evolution - A Simple and
// Efficient Heuristic for Global Optimization over Continuous Spaces, J. Global Optimization 11,
// 1997), with the usual F and CR, on positions along the parameters: a vector between values is
// rounded, one that is no legal point moves to the nearest. Points are measured once; a generation
// that meets a known one uses what is known.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <numeric>
#include <random>

#include "search/coordinates.hpp"
#include "search/draw.hpp"
#include "search/strategies.hpp"

namespace moetune {
namespace {

constexpr std::size_t kPopulation = 20;
constexpr double kWeight = 0.8;     // F
constexpr double kCrossover = 0.9;  // CR
constexpr int kStuck = 5;           // generations without a new point: start again
constexpr int kMostRestarts = 3;    // in a row that found nothing better

class DifferentialEvolution final : public Strategy {
 public:
  DifferentialEvolution(const SearchSpace& space, std::vector<Point> legal,
                        const StrategyOptions& options)
      : points_(std::move(legal)),
        coordinates_(space, points_),
        limit_(options.count > 0 ? options.count : points_.size()),
        generator_(options.seed),
        costs_(points_.size(), kUnknown) {
    populate();
  }

  std::optional<Point> next() override {
    if (num_waiting_ > 0 && queue_.empty()) return std::nullopt;
    while (queue_.empty() && evolve()) continue;
    if (queue_.empty() || num_proposed_ == limit_) return std::nullopt;
    ++num_waiting_;
    ++num_proposed_;
    const std::size_t point = queue_.back();
    queue_.pop_back();
    return points_[point];
  }

  void observe(const Point& point, const Trial& trial) override {
    --num_waiting_;
    const double time_us = trial.timing.median_us;
    const bool is_good = trial.status == TrialStatus::ok && time_us > 0;
    const std::size_t at = coordinates_.find(point).value();
    costs_[at] = is_good ? time_us : std::numeric_limits<double>::infinity();
    if (costs_[at] < best_) {
      best_ = costs_[at];
      is_better_ = true;
    }
  }

  std::uint64_t expected() const override {
    return std::min<std::uint64_t>(limit_, points_.size());
  }

 private:
  static constexpr double kUnknown = -1;

  void ask(std::size_t point) {
    if (costs_[point] == kUnknown && std::ranges::find(queue_, point) == queue_.end()) {
      queue_.push_back(point);
    }
  }

  // A population of points that were not measured yet, as far as there are any.
  void populate() {
    std::vector<std::size_t> fresh;
    for (std::size_t i = 0; i < points_.size(); ++i)
      if (costs_[i] == kUnknown) fresh.push_back(i);
    population_.clear();
    trials_.clear();
    while (!fresh.empty() && population_.size() < kPopulation) {
      const std::size_t at = draw_below(fresh.size(), generator_);
      population_.push_back(fresh[at]);
      ask(fresh[at]);
      fresh[at] = fresh.back();
      fresh.pop_back();
    }
    num_stuck_ = 0;
    is_better_ = false;
  }

  // Selects among parents and trials, then makes the next generation's trials. False when done.
  bool evolve() {
    for (std::size_t i = 0; i < trials_.size(); ++i)
      if (costs_[trials_[i]] <= costs_[population_[i]]) population_[i] = trials_[i];
    trials_.clear();
    if (population_.size() < 4) return false;  // so few that all are measured
    if (num_stuck_ >= kStuck) {
      num_restarts_ = is_better_ ? 0 : num_restarts_ + 1;
      if (num_restarts_ > kMostRestarts) return false;
      populate();
      return !population_.empty();
    }
    for (std::size_t i = 0; i < population_.size(); ++i) trials_.push_back(trial_of(i));
    for (const std::size_t point : trials_) ask(point);
    num_stuck_ = queue_.empty() ? num_stuck_ + 1 : 0;
    return true;
  }

  std::size_t trial_of(std::size_t parent) {
    std::size_t others[3] = {};
    for (std::size_t n = 0; n < 3; ++n) {
      do {
        others[n] = draw_below(population_.size(), generator_);
      } while (others[n] == parent || std::find(others, others + n, others[n]) != others + n);
    }
    const auto a = coordinates_.of(population_[others[0]]);
    const auto b = coordinates_.of(population_[others[1]]);
    const auto c = coordinates_.of(population_[others[2]]);
    const auto own = coordinates_.of(population_[parent]);
    std::vector<int> trial(own.begin(), own.end());
    const std::size_t always = draw_below(trial.size(), generator_);
    for (std::size_t k = 0; k < trial.size(); ++k) {
      if (draw_unit(generator_) >= kCrossover && k != always) continue;
      const auto mutant = static_cast<int>(std::lround(a[k] + kWeight * (b[k] - c[k])));
      trial[k] = std::clamp(mutant, 0, coordinates_.num_values(k) - 1);
    }
    return nearest(trial);
  }

  std::size_t nearest(std::span<const int> positions) const {
    if (const auto found = coordinates_.find(positions)) return *found;
    std::size_t nearest = 0;
    int least = std::numeric_limits<int>::max();
    for (std::size_t i = 0; i < points_.size(); ++i) {
      const auto of = coordinates_.of(i);
      const int distance =
          std::transform_reduce(positions.begin(), positions.end(), of.begin(), 0, std::plus<>(),
                                [](int x, int y) { return std::abs(x - y); });
      if (distance < least) {
        least = distance;
        nearest = i;
      }
    }
    return nearest;
  }

  std::vector<Point> points_;
  Coordinates coordinates_;
  std::uint64_t limit_;
  std::mt19937_64 generator_;
  std::vector<double> costs_;  // by point, us; kUnknown until measured
  std::vector<std::size_t> population_;
  std::vector<std::size_t> trials_;  // [population]: the challengers
  std::vector<std::size_t> queue_;   // to be proposed, the last first
  std::uint64_t num_proposed_ = 0;
  std::size_t num_waiting_ = 0;  // proposed and not yet observed
  int num_stuck_ = 0;
  int num_restarts_ = 0;
  double best_ = std::numeric_limits<double>::infinity();
  bool is_better_ = false;  // found since the last restart
};

}  // namespace

std::unique_ptr<Strategy> make_differential_evolution(const SearchSpace& space,
                                                      std::vector<Point> legal,
                                                      const StrategyOptions& options) {
  return std::make_unique<DifferentialEvolution>(space, std::move(legal), options);
}

}  // namespace moetune
