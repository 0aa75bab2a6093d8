#include "tune/climb.hpp"

#include <algorithm>
#include <set>
#include <string>
#include <utility>

#include "report/summary.hpp"
#include "tune/evaluator.hpp"

namespace moetune {
namespace {

constexpr double kShortLayerUs = 100;
constexpr int kMostSteps = 6;
constexpr int kPatience = 2;  // steps without gain
constexpr std::size_t kBeam = 3;
constexpr double kGain = 0.995;     // less is none
constexpr double kBeamBand = 1.04;  // of the fastest
constexpr double kBand = 1.01;      // of the fastest, which looks may mistake for it
constexpr std::size_t kMostFound = 6;

class Climb {
 public:
  Climb(Runner& runner, std::span<const Proposals, 2> stages) : runner_(runner), stages_(stages) {}

  void look(std::span<const Plan> layers);
  void step();
  double best_us() const { return found_.empty() ? 0 : found_.front().us; }
  std::vector<Plan> best() const;

 private:
  struct Found {
    double us = 0;
    Plan layer;
    bool is_expanded = false;
  };
  std::vector<Plan> around(const Plan& layer) const;

  Runner& runner_;
  std::span<const Proposals, 2> stages_;
  std::set<std::string> seen_;
  std::vector<Found> found_;  // the fastest first
};

// What no look was at before.
void Climb::look(std::span<const Plan> layers) {
  std::vector<Request> requests;
  for (const Plan& layer : layers) {
    if (seen_.insert(layer.key()).second)
      requests.push_back({Stage::layer, stages_[0].num_tokens(), layer});
  }
  runner_.prefetch(requests);
  for (const Request& request : requests) {
    const Trial trial = runner_.run(request, 0);
    if (has_good_time(trial)) found_.push_back({trial.timing.median_us, request.plan});
  }
  std::stable_sort(found_.begin(), found_.end(),
                   [](const Found& a, const Found& b) { return a.us < b.us; });
}

std::vector<Plan> Climb::around(const Plan& layer) const {
  std::vector<Plan> layers;
  for (std::size_t s = 0; s < 2; ++s) {
    for (Step& neighbour : stages_[s].neighbours(layer.steps[s])) {
      layers.push_back(layer);
      layers.back().steps[s] = std::move(neighbour);
    }
  }
  return layers;
}

void Climb::step() {
  std::vector<Plan> layers;
  std::set<std::string> seconds;
  for (Found& one : found_) {
    if (seconds.size() == kBeam || one.us > best_us() * kBeamBand) break;
    if (!seconds.insert(one.layer.steps[1].point.key()).second) continue;
    if (std::exchange(one.is_expanded, true)) continue;
    for (Plan& layer : around(one.layer)) layers.push_back(std::move(layer));
  }
  look(layers);
}

std::vector<Plan> Climb::best() const {
  std::vector<Plan> best;
  for (const Found& one : found_) {
    if (best.size() == kMostFound || one.us > best_us() * kBand) break;
    best.push_back(one.layer);
  }
  return best;
}

}  // namespace

std::vector<Plan> climb(Runner& runner, std::span<const Proposals, 2> stages,
                        std::span<const Plan> starts) {
  Climb climb(runner, stages);
  climb.look(starts.first(1));
  if (climb.best_us() == 0 || climb.best_us() > kShortLayerUs) return {};
  climb.look(starts);
  int num_stale = 0;
  for (int i = 0; i < kMostSteps && num_stale < kPatience; ++i) {
    const double before_us = climb.best_us();
    climb.step();
    num_stale = climb.best_us() > before_us * kGain ? num_stale + 1 : 0;
  }
  return climb.best();
}

}  // namespace moetune
