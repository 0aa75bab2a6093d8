// Guided search: the analytic model's order, corrected by measurements.
//
// Batches of points go out. After each, a forest of random trees learns how far the model is off
// from the parameters; the model times that correction ranks the points that are left, and the next
// batch are those with the largest expected improvement (Jones, Schonlau, Welch: Efficient global
// optimization of expensive black-box functions, 1998), beside, where this space has the fastest of
// all, a few one step from it: it does not end before those are measured. What a neighbouring token
// count measured is learnt from as well: a kernel that beats the model there does so here. It ends
// when a further batch is not expected to gain anything near 1 %, or batches have gained nothing
// for a while: the sooner, the further this space's fastest is behind the other spaces'. The
// constants were chosen by replaying full grids of an H200, which results/NVIDIA_H200/replay/ has.
#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numbers>
#include <numeric>
#include <random>

#include "search/coordinates.hpp"
#include "search/draw.hpp"
#include "search/forest.hpp"
#include "search/strategies.hpp"

namespace moetune {
namespace {

constexpr std::size_t kBatch = 8;
constexpr std::size_t kFirstBatch = 24;    // where nothing is known but the model
constexpr std::size_t kNeighbourBest = 4;  // of a neighbour's fastest, tried first
constexpr std::size_t kSteps = 4;          // of a batch, those one step from the fastest
constexpr std::size_t kMostNeighbourRows = 400;
// Expected gains of a batch's points, summed: an upper bound of what the batch gains, relative.
// Well below 1 %, for the points that are left do not share one error.
constexpr double kWorthwhile = 0.005;
constexpr double kProgress = 0.004;    // a smaller gain is no progress
constexpr int kPatience = 5;           // batches without progress
constexpr int kNeighbourPatience = 4;  // where a neighbour was measured
constexpr double kBehind = 0.0125;     // behind the other spaces by this: a batch of patience less
constexpr double kPriorDoubt = 0.04;   // error of a prediction, relative, before any was checked
constexpr double kPriorWeight = 6;     // how many checked predictions that counts as
constexpr double kMostError = 0.15;    // a larger error of one prediction counts as this
constexpr double kLeastSd = 0.005;     // noise of a first look
constexpr double kFailed = 0.7;        // a failure is learnt as twice the best time: log 2

enum class State : unsigned char { open, proposed, measured };

// E max(0, best - x) for x normal.
double expected_gain(double best, const Estimate& estimate) {
  const double sd = std::max(estimate.sd, kLeastSd);
  const double z = (best - estimate.mean) / sd;
  const double density = std::exp(-0.5 * z * z) / std::sqrt(2 * std::numbers::pi);
  const double below = 0.5 * std::erfc(-z / std::numbers::sqrt2);
  return sd * (z * below + density);
}

class Guided final : public Strategy {
 public:
  Guided(const SearchSpace& space, std::vector<Point> legal, const StrategyOptions& options);

  void learn(std::span<const Observation> neighbour) override;
  void aim(double best_us) override { aim_ = best_us > 0 ? std::log(best_us) : aim_; }
  std::optional<Point> next() override;
  void observe(const Point& point, const Trial& trial) override;
  std::uint64_t expected() const override {
    return std::min<std::uint64_t>(points_.size(), kFirstBatch + points_.size() / 8);
  }
  std::vector<Point> likely(std::size_t count) const override;

 private:
  struct Row {  // of what the forest learns from
    std::vector<float> features;
    double excess = 0;                 // log of the prediction over the fastest there
    double time = 0;                   // log us
    std::optional<std::size_t> point;  // the same point here
  };

  std::vector<float> features(std::span<const int> positions, double excess, bool here) const;
  void propose();
  void rank();
  void take(std::size_t point);
  double fastest() const;
  double best() const;
  std::vector<std::size_t> steps_from_fastest() const;
  int patience() const;
  double shift(double trust) const;
  double trust() const;
  double doubt() const;

  std::vector<Point> points_;
  Coordinates coordinates_;
  std::uint64_t seed_;
  std::vector<double> excess_;  // log of the prediction over the fastest prediction
  std::vector<State> states_;
  std::vector<double> estimates_;      // log us, of proposed points; 0: nothing was predicted
  std::vector<double> times_;          // log us, of measured points; infinite: failed
  std::vector<std::size_t> measured_;  // in the order they were
  std::vector<Row> neighbour_rows_;
  std::vector<std::size_t> neighbour_best_;
  std::vector<std::size_t> ranked_;  // open points, the most promising first
  std::vector<std::size_t> batch_;
  std::size_t next_ = 0;         // within the batch
  std::size_t num_waiting_ = 0;  // proposed and not yet observed
  int num_batches_ = 0;
  int num_stale_ = 0;
  double best_before_ = std::numeric_limits<double>::infinity();  // the batch before
  double aim_ = std::numeric_limits<double>::infinity();
};

Guided::Guided(const SearchSpace& space, std::vector<Point> legal, const StrategyOptions& options)
    : points_(std::move(legal)),
      coordinates_(space, points_),
      seed_(options.seed),
      states_(points_.size(), State::open),
      estimates_(points_.size(), 0),
      times_(points_.size(), std::numeric_limits<double>::infinity()) {
  for (const Point& point : points_) {
    const double time_us = options.predict_us ? options.predict_us(point) : 1;
    excess_.push_back(std::log(time_us > 0 ? time_us : 1));
  }
  const double fastest = excess_.empty() ? 0 : *std::ranges::min_element(excess_);
  for (double& excess : excess_) excess -= fastest;
  ranked_.resize(points_.size());
  std::iota(ranked_.begin(), ranked_.end(), std::size_t{0});
  std::ranges::stable_sort(ranked_, {}, [&](std::size_t i) { return excess_[i]; });
}

// Positions, not values: sizes double from one to the next. The last feature tells this token
// count's rows from a neighbour's.
std::vector<float> Guided::features(std::span<const int> positions, double excess,
                                    bool here) const {
  std::vector<float> row(positions.begin(), positions.end());
  row.push_back(static_cast<float>(excess));
  row.push_back(here ? 1 : 0);
  return row;
}

void Guided::learn(std::span<const Observation> neighbour) {
  double fastest = std::numeric_limits<double>::infinity();
  std::vector<std::pair<double, std::size_t>> by_time;
  std::map<std::vector<int>, const Observation*> sorted;  // the order of looks must not matter
  for (const Observation& seen : neighbour) {
    const auto positions = coordinates_.positions(seen.point);
    if (!positions || !(seen.time_us > 0) || !(seen.predicted_us > 0)) continue;
    sorted[*positions] = &seen;
    fastest = std::min(fastest, std::log(seen.predicted_us));
  }
  for (const auto& [positions, seen] : sorted) {
    const double excess = std::log(seen->predicted_us) - fastest;
    const auto point = coordinates_.find(positions);
    neighbour_rows_.push_back(
        {features(positions, excess, false), excess, std::log(seen->time_us), point});
    if (point) by_time.emplace_back(seen->time_us, *point);
  }
  std::ranges::sort(by_time);
  for (const auto& [time_us, point] : by_time) neighbour_best_.push_back(point);
  neighbour_best_.resize(std::min(neighbour_best_.size(), kNeighbourBest));
  if (neighbour_rows_.size() > kMostNeighbourRows) {
    std::ranges::nth_element(neighbour_rows_, neighbour_rows_.begin() + kMostNeighbourRows, {},
                             &Row::time);
    neighbour_rows_.resize(kMostNeighbourRows);
  }
}

double Guided::fastest() const {
  double fastest = std::numeric_limits<double>::infinity();
  for (const std::size_t point : measured_) fastest = std::min(fastest, times_[point]);
  return fastest;
}

// Of all spaces.
double Guided::best() const {
  return std::min(aim_, fastest());
}

// Open points that differ from the fastest by one step of one parameter, the most promising first.
std::vector<std::size_t> Guided::steps_from_fastest() const {
  const auto centre =
      std::ranges::min_element(measured_, {}, [&](std::size_t i) { return times_[i]; });
  if (centre == measured_.end()) return {};
  std::vector<int> positions(coordinates_.of(*centre).begin(), coordinates_.of(*centre).end());
  std::vector<std::size_t> steps;
  for (int& position : positions) {
    for (const int step : {-1, 1}) {
      position += step;
      const auto point = coordinates_.find(positions);
      if (point && states_[*point] == State::open) steps.push_back(*point);
      position -= step;
    }
  }
  std::ranges::stable_sort(steps, {}, [&](std::size_t i) { return estimates_[i]; });
  return steps;
}

// Batches without progress that it goes on after.
int Guided::patience() const {
  const double behind = std::min(fastest() - best(), 1.0) / kBehind;
  return (neighbour_best_.empty() ? kPatience : kNeighbourPatience) - static_cast<int>(behind);
}

// How much slower it is here than at the neighbour, beyond what the model says: the median over the
// points measured at both.
double Guided::shift(double trust) const {
  std::vector<double> shifts;
  for (const Row& row : neighbour_rows_) {
    if (!row.point || states_[*row.point] != State::measured || std::isinf(times_[*row.point]))
      continue;
    shifts.push_back(times_[*row.point] - row.time - trust * (excess_[*row.point] - row.excess));
  }
  if (shifts.empty()) return 0;
  const auto middle = shifts.begin() + static_cast<std::ptrdiff_t>(shifts.size() / 2);
  std::nth_element(shifts.begin(), middle, shifts.end());
  return *middle;
}

// How much of the model's differences show in the times, 0..1: the slope of one over the other. A
// forest would take long to learn away what a bad model says.
double Guided::trust() const {
  double covariance = 0;
  double variance = 0;
  const auto add = [&](const auto& pairs) {
    double mean_predicted = 0;
    double mean_time = 0;
    for (const auto& [predicted, time] : pairs) {
      mean_predicted += predicted / static_cast<double>(pairs.size());
      mean_time += time / static_cast<double>(pairs.size());
    }
    for (const auto& [predicted, time] : pairs) {
      covariance += (predicted - mean_predicted) * (time - mean_time);
      variance += (predicted - mean_predicted) * (predicted - mean_predicted);
    }
  };
  std::vector<std::pair<double, double>> here, there;
  for (const std::size_t point : measured_)
    if (!std::isinf(times_[point])) here.emplace_back(excess_[point], times_[point]);
  for (const Row& row : neighbour_rows_) there.emplace_back(row.excess, row.time);
  add(here);
  add(there);
  return variance > 0 ? std::clamp(covariance / variance, 0.0, 1.0) : 1;
}

// The root mean square error of what was predicted so far: a forest alone is too sure of itself.
double Guided::doubt() const {
  double squares = kPriorDoubt * kPriorDoubt * kPriorWeight;
  double weight = kPriorWeight;
  for (const std::size_t point : measured_) {
    if (estimates_[point] == 0 || std::isinf(times_[point])) continue;
    const double error = std::clamp(times_[point] - estimates_[point], -kMostError, kMostError);
    squares += error * error;
    ++weight;
  }
  return std::sqrt(squares / weight);
}

void Guided::take(std::size_t point) {
  if (states_[point] != State::open) return;
  states_[point] = State::proposed;
  batch_.push_back(point);
}

// Sorts the open points by expected gain and decides whether to go on.
void Guided::rank() {
  std::vector<float> rows;
  std::vector<float> targets;
  const auto add = [&](const std::vector<float>& row, double target) {
    rows.insert(rows.end(), row.begin(), row.end());
    targets.push_back(static_cast<float>(target));
  };
  const double best = this->best();
  const double trust = this->trust();
  const double shift = this->shift(trust);
  for (const Row& row : neighbour_rows_) add(row.features, row.time + shift - trust * row.excess);
  for (const std::size_t point : measured_) {
    const double time = std::isinf(times_[point]) ? best + kFailed : times_[point];
    add(features(coordinates_.of(point), excess_[point], true), time - trust * excess_[point]);
  }
  ranked_.clear();
  if (targets.empty() || std::isinf(best)) {
    for (std::size_t i = 0; i < points_.size(); ++i)
      if (states_[i] == State::open) ranked_.push_back(i);
    std::ranges::stable_sort(ranked_, {}, [&](std::size_t i) { return excess_[i]; });
    return;
  }
  const double doubt = this->doubt();
  const Forest forest(rows, coordinates_.num_parameters() + 2, targets,
                      seed_ + static_cast<std::uint64_t>(num_batches_));
  std::vector<std::pair<double, std::size_t>> gains;
  for (std::size_t i = 0; i < points_.size(); ++i) {
    if (states_[i] != State::open) continue;
    Estimate estimate = forest.predict(features(coordinates_.of(i), excess_[i], true));
    estimate.mean += trust * excess_[i];
    estimate.sd = std::hypot(estimate.sd, doubt);
    estimates_[i] = estimate.mean;
    gains.emplace_back(-expected_gain(best, estimate), i);
  }
  std::ranges::sort(gains);
  double gain = 0;
  for (std::size_t i = 0; i < std::min(kBatch, gains.size()); ++i) gain -= gains[i].first;
  num_stale_ = best < best_before_ - kProgress ? 0 : num_stale_ + 1;
  best_before_ = std::min(best, best_before_);
  if (fastest() <= best) ranked_ = steps_from_fastest();
  if (gain < kWorthwhile || num_stale_ > patience()) return;  // done, but for those steps
  ranked_.resize(std::min(ranked_.size(), kSteps));
  for (const auto& [negative, point] : gains) ranked_.push_back(point);  // take() has each once
}

void Guided::propose() {
  batch_.clear();
  next_ = 0;
  std::size_t size = kBatch;
  if (num_batches_ == 0) {
    for (const std::size_t point : neighbour_best_) take(point);
    if (neighbour_best_.empty()) {
      // Half by the model; half along its order, for the correction to have something to learn.
      size = kFirstBatch;
      for (std::size_t i = 0; i < ranked_.size() && batch_.size() < size / 2; ++i) take(ranked_[i]);
      std::mt19937_64 generator(seed_);
      const std::size_t spread = std::max<std::size_t>(1, ranked_.size() * 2 / 3);
      for (std::size_t n = 0; n < size / 2 && !ranked_.empty(); ++n) {
        const std::size_t begin = n * spread / (size / 2);
        const std::size_t end = std::max(begin + 1, (n + 1) * spread / (size / 2));
        take(ranked_[begin + draw_below(end - begin, generator)]);
      }
    }
  } else {
    rank();
  }
  for (std::size_t i = 0; i < ranked_.size() && batch_.size() < size; ++i) take(ranked_[i]);
  ++num_batches_;
}

std::optional<Point> Guided::next() {
  if (next_ == batch_.size()) {
    if (num_waiting_ > 0) return std::nullopt;
    propose();
    if (batch_.empty()) return std::nullopt;
  }
  ++num_waiting_;
  return points_[batch_[next_++]];
}

void Guided::observe(const Point& point, const Trial& trial) {
  --num_waiting_;
  const std::size_t at = coordinates_.find(point).value();
  states_[at] = State::measured;
  measured_.push_back(at);
  const double time_us = trial.timing.median_us;
  if (trial.status == TrialStatus::ok && time_us > 0) times_[at] = std::log(time_us);
}

std::vector<Point> Guided::likely(std::size_t count) const {
  std::vector<Point> points;
  for (const std::size_t point : ranked_) {
    if (points.size() == count) break;
    if (states_[point] == State::open) points.push_back(points_[point]);
  }
  return points;
}

}  // namespace

std::unique_ptr<Strategy> make_guided(const SearchSpace& space, std::vector<Point> legal,
                                      const StrategyOptions& options) {
  return std::make_unique<Guided>(space, std::move(legal), options);
}

}  // namespace moetune
