#include "tune/replay.hpp"

#include <algorithm>
#include <atomic>
#include <future>
#include <map>
#include <memory>
#include <set>
#include <thread>
#include <utility>

#include "report/summary.hpp"
#include "search/strategy.hpp"

namespace moetune {
namespace {

constexpr double kRaceBand = 1.25;     // as the race has it
constexpr double kLongGraphUs = 2000;  // as the device evaluator has these
constexpr double kFirstLookUs = 200;
constexpr double kFirstLookFactor = 1.2;
constexpr int kNumCalls = 8;
constexpr int kNumSamples = 3;
constexpr std::size_t kWindow = 4096;   // as proposals have it
constexpr std::size_t kNumWinners = 8;  // finalists that a session keeps
constexpr double kFinalistBand = 1.03;

struct Candidate {
  std::size_t space = 0;
  std::size_t point = 0;
};

// What one token count leaves to the next.
struct Legacy {
  std::map<std::string, std::vector<Observation>> seen;  // by variant
  std::vector<std::pair<std::string, Point>> winners;    // variant, point
};

class EntryReplay {
 public:
  EntryReplay(const RecordedEntry& entry, const std::string& strategy, std::uint64_t seed)
      : entry_(entry), in_drawn_order_(strategy == "random") {
    run_.stage = entry.stage;
    run_.num_tokens = entry.num_tokens;
    run_.num_points = entry.num_points();
    for (std::size_t s = 0; s < entry.spaces.size(); ++s) {
      const RecordedSpace& space = entry.spaces[s];
      const Coordinates& coordinates = entry.coordinates[s];
      strategies_.push_back(
          make_strategy(strategy, space.space, space.points,
                        {.count = strategy == "random" ? space.points.size() : 0,
                         .seed = seed,
                         .start = start_of(s),
                         .predict_us = [&space, &coordinates](const Point& point) {
                           const auto at = coordinates.find(point);
                           return at ? space.predicted_us[*at] : 0;
                         }}));
    }
  }

  EntryRun run(Legacy& legacy) {
    if (const auto at = find(entry_.reference.variant, entry_.reference.point)) look(*at);
    for (const auto& [variant, point] : legacy.winners)
      if (const auto at = find(variant, point)) look(*at);
    for (std::size_t s = 0; s < strategies_.size(); ++s)
      strategies_[s]->learn(legacy.seen[entry_.spaces[s].variant]);
    for (std::vector<Candidate> queue = refill(); !queue.empty(); queue = refill()) {
      for (const Candidate& candidate : queue) {
        look(candidate);
        const RecordedSpace& space = entry_.spaces[candidate.space];
        strategies_[candidate.space]->observe(space.points[candidate.point],
                                              space.looks[candidate.point]);
      }
    }
    bequeath(legacy);
    return with_rest(run_);
  }

 private:
  // Where an ablation starts: the reference point, or its like; without parameters that are newer
  // than the recording.
  std::optional<Point> start_of(std::size_t s) const {
    const RecordedSpace& space = entry_.spaces[s];
    if (space.variant != entry_.reference.variant) return std::nullopt;
    Point start;
    for (const auto& [name, value] : entry_.reference.point.values()) {
      if (space.space.find(name) != nullptr) start.set(name, value);
    }
    return start;
  }

  std::optional<Candidate> find(const std::string& variant, const Point& point) const {
    for (std::size_t s = 0; s < entry_.spaces.size(); ++s) {
      if (entry_.spaces[s].variant != variant) continue;
      if (const auto at = entry_.coordinates[s].find(point)) return Candidate{s, *at};
    }
    return std::nullopt;
  }

  // What would come of looking at all that is left, in the time model's order.
  EntryRun with_rest(EntryRun run) {
    std::vector<Candidate> rest;
    for (std::size_t s = 0; s < entry_.spaces.size(); ++s)
      for (std::size_t i = 0; i < entry_.spaces[s].points.size(); ++i)
        if (!seen_.contains({s, i})) rest.push_back({s, i});
    by_prediction(rest);
    run_.improvements.clear();
    for (const Candidate& candidate : rest) look(candidate);
    run.later = std::move(run_.improvements);
    return run;
  }

  void by_prediction(std::vector<Candidate>& candidates) const {
    std::ranges::stable_sort(candidates, {}, [&](const Candidate& candidate) {
      return entry_.spaces[candidate.space].predicted_us[candidate.point];
    });
  }

  void look(const Candidate& candidate) {
    if (!seen_.insert({candidate.space, candidate.point}).second) return;
    order_.push_back(candidate);
    const Trial& trial = entry_.spaces[candidate.space].looks[candidate.point];
    ++run_.num_evaluations;
    if (trial.status == TrialStatus::ok) {
      run_.gpu_s += look_cost_us(trial.timing.median_us, best_us_) / 1e6;
    }
    if (!has_good_time(trial) || (best_us_ > 0 && trial.timing.median_us >= best_us_)) return;
    best_us_ = trial.timing.median_us;
    run_.improvements.push_back({run_.num_evaluations, run_.gpu_s, best_us_ / entry_.best_us});
  }

  std::vector<Candidate> refill() {
    std::vector<Candidate> queue;
    for (std::size_t s = 0; s < strategies_.size(); ++s) {
      if (best_us_ > 0) strategies_[s]->aim(best_us_);
      for (std::size_t n = 0; n < kWindow; ++n) {
        const auto point = strategies_[s]->next();
        if (!point) break;
        queue.push_back({s, entry_.coordinates[s].find(*point).value()});
      }
    }
    if (in_drawn_order_) return queue;
    by_prediction(queue);
    return queue;
  }

  void bequeath(Legacy& legacy) const {
    legacy = {};
    std::vector<std::pair<double, Candidate>> good;
    for (const Candidate& candidate : order_) {
      const RecordedSpace& space = entry_.spaces[candidate.space];
      const Trial& trial = space.looks[candidate.point];
      const bool is_timed = trial.status == TrialStatus::ok;
      legacy.seen[space.variant].push_back({space.points[candidate.point],
                                            space.predicted_us[candidate.point],
                                            is_timed ? trial.timing.median_us : 0});
      if (has_good_time(trial) && trial.timing.median_us <= best_us_ * kFinalistBand) {
        good.emplace_back(trial.timing.median_us, candidate);
      }
    }
    std::ranges::stable_sort(good, {}, [](const auto& one) { return one.first; });
    for (std::size_t i = 0; i < std::min(good.size(), kNumWinners); ++i) {
      const RecordedSpace& space = entry_.spaces[good[i].second.space];
      legacy.winners.emplace_back(space.variant, space.points[good[i].second.point]);
    }
  }

  const RecordedEntry& entry_;
  bool in_drawn_order_;
  std::vector<std::unique_ptr<Strategy>> strategies_;  // [spaces]
  std::set<std::pair<std::size_t, std::size_t>> seen_;
  std::vector<Candidate> order_;
  double best_us_ = 0;
  EntryRun run_;
};

}  // namespace

double look_cost_us(double time_us, double best_us) {
  const double limit_us = best_us * kRaceBand;
  const bool is_limited = limit_us > 0;
  if (is_limited && time_us > kFirstLookUs && time_us > kFirstLookFactor * limit_us) return time_us;
  const bool is_long = time_us * kNumCalls > kLongGraphUs;
  const int num_calls =
      is_long ? std::clamp(static_cast<int>(kLongGraphUs / time_us), 1, kNumCalls) : kNumCalls;
  const int num_samples = is_limited && time_us > limit_us ? 1 : kNumSamples;
  const int num_graphs = (is_long ? 0 : 1) + num_samples;
  return time_us * (1 + num_calls * num_graphs);
}

std::vector<EntryRun> replay(const Recording& recording, const std::string& strategy,
                             std::uint64_t seed) {
  std::vector<EntryRun> runs;
  Legacy legacy;
  for (std::size_t i = 0; i < recording.entries.size(); ++i) {
    const RecordedEntry& entry = recording.entries[i];
    if (i > 0 && entry.stage != recording.entries[i - 1].stage) legacy = {};
    runs.push_back(EntryReplay(entry, strategy, seed).run(legacy));
  }
  return runs;
}

JournalReplay replay_all(const Recording& recording, std::span<const std::string> strategies,
                         std::uint64_t num_seeds) {
  JournalReplay result{recording.path, recording.identity, 0, {}};
  for (const RecordedEntry& entry : recording.entries) result.num_points += entry.num_points();
  for (const std::string& name : strategies) {
    StrategyReplay of_strategy{name, std::vector<std::vector<EntryRun>>(num_seeds)};
    std::atomic<std::uint64_t> next = 0;
    const auto work = [&] {
      for (std::uint64_t seed = next++; seed < num_seeds; seed = next++)
        of_strategy.runs[seed] = replay(recording, name, seed);
    };
    std::vector<std::future<void>> workers;
    for (unsigned i = 0; i < std::max(1U, std::thread::hardware_concurrency()); ++i)
      workers.push_back(std::async(std::launch::async, work));
    for (std::future<void>& worker : workers) worker.get();
    result.strategies.push_back(std::move(of_strategy));
  }
  return result;
}

}  // namespace moetune
