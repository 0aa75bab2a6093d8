// The points that a search tries for one stage at one token count, in the order it tries them.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/objective.hpp"
#include "kernels/variant.hpp"
#include "search/legal_points.hpp"
#include "search/strategy.hpp"
#include "table/table.hpp"
#include "tune/budget.hpp"

namespace moetune {

struct SearchSettings {
  std::vector<const Variant*> variants;  // that support the GPU, in order of preference for ties
  std::function<Plan(const Gpu&, const Problem&)> reference = reference_plan;
  std::vector<std::int64_t> token_counts;  // ascending
  std::string strategy = "grid";
  std::uint64_t num_random = 0;      // random: points for each stage and token count
  std::optional<Point> start;        // ablation: what it sets replaces the reference point's
  std::optional<Table> start_table;  // ablation: its points are where to start
  Fp8Mode fp8 = Fp8Mode::off;
  bool deterministic = false;  // only points whose calls give the same bits each time
  Budget budget;
  std::size_t num_finalists = 8;
  Objective objective = Objective::time;
};

struct Candidate {
  const Variant* variant = nullptr;
  Strategy* strategy = nullptr;
  Point point;
  double predicted_us = 0;
};

class Proposals {
 public:
  // Enumerates the spaces. Throws Error(usage) for a start point that names an unknown parameter.
  // `settings` must outlive this.
  Proposals(const SearchSettings& settings, const Gpu& gpu, const Problem& problem, Stage stage);

  // Shows the strategies what trials of this stage at other token counts came to, then makes the
  // first refill.
  void begin(std::span<const Trial> neighbours);
  // What comes next, best predicted first: racing then has a tight bound from the start, and a
  // budget that runs out has seen what is likely best.
  std::vector<Candidate> queue;
  std::size_t num_prefetched = 0;  // how far into the queue compilation has been started
  // Replaces the queue with what the strategies propose now; false when they are done. `best_us`:
  // the fastest time so far, 0 when there is none.
  bool refill(double best_us);
  // Plans that may well come after the queue, up to `count` for each variant.
  std::vector<Plan> likely(std::size_t count) const;

  Plan plan(const Variant& variant, const Point& point) const;
  Plan plan(const Candidate& candidate) const { return plan(*candidate.variant, candidate.point); }
  bool allows(const Step& step) const;  // a point of these spaces that breaks no rule
  // What is allowed and differs from it in one parameter, but for FP8, by one value of its list.
  std::vector<Step> neighbours(const Step& step) const;
  Stage stage() const { return stage_; }
  std::int64_t num_tokens() const { return problem_.num_tokens; }
  std::uint64_t expected() const;    // points that will be proposed in all, an estimate
  std::uint64_t num_points() const;  // raw points of the spaces
  const std::map<std::string, RejectedRule>& rejected() const { return rejected_; }
  const std::vector<std::string>& notes() const { return notes_; }

  struct Searched {
    const Variant* variant = nullptr;
    SearchSpace space;
    std::unique_ptr<Strategy> strategy;
    std::optional<Point> first;  // the first point proposed: where an ablation starts
  };
  const std::vector<Searched>& searched() const { return searched_; }

 private:
  std::optional<Point> start_point(const SearchSettings& settings, const Variant& variant,
                                   const SearchSpace& space) const;

  Gpu gpu_;
  Problem problem_;
  Stage stage_;
  std::vector<Searched> searched_;
  std::map<std::string, RejectedRule> rejected_;
  std::vector<std::string> notes_;
};

}  // namespace moetune
