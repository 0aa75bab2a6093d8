#include "tune/proposals.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <utility>

#include "core/error.hpp"
#include "core/text.hpp"
#include "report/summary.hpp"

namespace moetune {
namespace {

// Asked of a strategy before it sees how the first of them did: all of a grid in practice, and a
// bound on what a strategy without end may cost.
constexpr std::size_t kWindow = 4096;

// Every variant's first, then every variant's second and so on: a model that is too kind to one
// must not cost a small budget the others.
void take_turns(std::vector<Candidate>& queue) {
  std::map<const Variant*, std::size_t> counts;
  std::vector<std::pair<std::size_t, Candidate>> ranked;
  ranked.reserve(queue.size());
  for (Candidate& candidate : queue) {
    const std::size_t rank = counts[candidate.variant]++;
    ranked.emplace_back(rank, std::move(candidate));
  }
  std::stable_sort(ranked.begin(), ranked.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  queue.clear();
  for (auto& [rank, candidate] : ranked) queue.push_back(std::move(candidate));
}

}  // namespace

Proposals::Proposals(const SearchSettings& settings, const Gpu& gpu, const Problem& problem,
                     Stage stage)
    : gpu_(gpu), problem_(problem), stage_(stage) {
  for (const Variant* variant : settings.variants) {
    Searched searched{variant, variant->space(gpu, problem, stage, settings.fp8), nullptr, {}};
    if (settings.deterministic) {
      searched.space.constraints.push_back(
          {"deterministic", [](const Point& point) -> std::optional<std::string> {
             if (is_deterministic(point)) return {};
             return "FUSE_COMBINE 1 adds rows in no fixed order";
           }});
    }
    LegalPoints legal = enumerate(searched.space);
    add_rejected(rejected_, legal.rejected);
    searched.strategy =
        make_strategy(settings.strategy, searched.space, std::move(legal.points),
                      {.count = settings.num_random,
                       .seed = problem.seed,
                       .start = start_point(settings, *variant, searched.space),
                       .predict_us = [variant, gpu, problem, stage](const Point& point) {
                         return variant->predict_us(gpu, problem, stage, point);
                       }});
    if (std::string note = searched.strategy->note(); !note.empty()) {
      notes_.push_back(fmt::format("{} {}, {} tokens: {}", variant->name(), to_string(stage),
                                   problem.num_tokens, note));
    }
    searched_.push_back(std::move(searched));
  }
}

void Proposals::begin(std::span<const Trial> neighbours) {
  for (Searched& searched : searched_) {
    std::vector<Observation> seen;
    for (const Trial& trial : neighbours) {
      const Step* step = trial.plan.find(to_string(stage_));
      if (step == nullptr || step->variant != searched.variant->name()) continue;
      Problem problem = problem_;
      problem.num_tokens = trial.num_tokens;
      const bool is_good = trial.status == TrialStatus::ok;
      seen.push_back({step->point, searched.variant->predict_us(gpu_, problem, stage_, step->point),
                      is_good ? trial.timing.median_us : 0});
    }
    searched.strategy->learn(seen);
  }
  refill(0);
}

std::optional<Point> Proposals::start_point(const SearchSettings& settings, const Variant& variant,
                                            const SearchSpace& space) const {
  if (settings.start_table) {
    const TableEntry* entry = look_up(*settings.start_table, problem_.num_tokens).entry;
    const Step* step = entry != nullptr ? entry->plan.find(to_string(stage_)) : nullptr;
    if (step != nullptr && step->variant == variant.name()) return step->point;
  }
  if (!settings.start) return {};
  Point point = space.reference();
  for (const auto& [name, value] : settings.start->values()) {
    if (space.find(name) != nullptr) {
      point.set(name, value);
      continue;
    }
    // A parameter of the other stage alone is no mistake: one start serves both.
    const Stage other = stage_ == Stage::gemm1 ? Stage::gemm2 : Stage::gemm1;
    if (variant.space(gpu_, problem_, other, settings.fp8).find(name) != nullptr) continue;
    std::vector<std::string> names;
    for (const Parameter& parameter : space.parameters) names.push_back(parameter.name);
    const std::string near = nearest(name, names);
    throw Error(ErrorKind::usage,
                fmt::format("--start: the {} variant has no parameter {}{}", variant.name(), name,
                            near.empty() ? "; `moe-tune space` lists them"
                                         : fmt::format("; did you mean {}?", near)));
  }
  return point;
}

bool Proposals::refill(double best_us) {
  queue.clear();
  num_prefetched = 0;
  for (Searched& searched : searched_) {
    if (best_us > 0) searched.strategy->aim(best_us);
    for (std::size_t n = 0; n < kWindow; ++n) {
      std::optional<Point> point = searched.strategy->next();
      if (!point) break;
      if (!searched.first) searched.first = point;
      const double predicted_us = searched.variant->predict_us(gpu_, problem_, stage_, *point);
      queue.push_back({searched.variant, searched.strategy.get(), *std::move(point), predicted_us});
    }
  }
  std::stable_sort(queue.begin(), queue.end(), [](const Candidate& a, const Candidate& b) {
    return a.predicted_us < b.predicted_us;
  });
  take_turns(queue);
  return !queue.empty();
}

std::vector<Plan> Proposals::likely(std::size_t count) const {
  std::vector<Plan> plans;
  for (const Searched& searched : searched_)
    for (const Point& point : searched.strategy->likely(count))
      plans.push_back(plan(*searched.variant, point));
  return plans;
}

Plan Proposals::plan(const Variant& variant, const Point& point) const {
  return Plan{{{std::string(to_string(stage_)), std::string(variant.name()), point}}};
}

bool Proposals::allows(const Step& step) const {
  return std::any_of(searched_.begin(), searched_.end(), [&](const Searched& searched) {
    return searched.variant->name() == step.variant && !searched.space.reject(step.point, true);
  });
}

std::vector<Step> Proposals::neighbours(const Step& step) const {
  std::vector<Step> found;
  for (const Searched& searched : searched_) {
    if (searched.variant->name() != step.variant) continue;
    for (const Parameter& parameter : searched.space.parameters) {
      if (parameter.name == "FP8") continue;
      const std::vector<int>& values = parameter.values;
      const auto here = std::find(values.begin(), values.end(), step.point.at(parameter.name));
      if (here == values.end()) continue;
      Step neighbour = step;
      const auto add = [&](int value) {
        neighbour.point.set(parameter.name, value);
        if (allows(neighbour)) found.push_back(neighbour);
      };
      if (here != values.begin()) add(here[-1]);
      if (here + 1 != values.end()) add(here[1]);
    }
  }
  return found;
}

std::uint64_t Proposals::expected() const {
  std::uint64_t sum = 0;
  for (const Searched& searched : searched_) sum += searched.strategy->expected();
  return sum;
}

std::uint64_t Proposals::num_points() const {
  std::uint64_t sum = 0;
  for (const Searched& searched : searched_) sum += searched.space.size();
  return sum;
}

}  // namespace moetune
