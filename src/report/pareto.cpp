#include "report/pareto.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <tuple>

#include "core/error.hpp"
#include "report/html_page.hpp"
#include "report/markdown.hpp"
#include "report/summary.hpp"

namespace moetune {
namespace {

constexpr double kNoise = 1.01;

// Better in one, and in the other no worse than by noise. Free of cycles: what it compares falls in
// first * second each time.
bool beats(const ParetoPoint& a, const ParetoPoint& b) {
  const auto better = [](double x, double y) { return x * kNoise < y; };
  return (better(a.first, b.first) && !better(b.second, a.second)) ||
         (better(a.second, b.second) && !better(b.first, a.first));
}

ParetoFront front_of(std::int64_t num_tokens, std::vector<ParetoPoint> points) {
  std::sort(points.begin(), points.end(), [](const ParetoPoint& a, const ParetoPoint& b) {
    return std::tuple(a.first, a.second, a.plan.key()) <
           std::tuple(b.first, b.second, b.plan.key());
  });
  ParetoFront front{num_tokens, {}};
  for (const ParetoPoint& point : points) {
    const bool is_beaten = std::any_of(points.begin(), points.end(), [&](const ParetoPoint& other) {
      return beats(other, point);
    });
    // Of those that are equal in both the first stands for all.
    const bool is_new = front.points.empty() || point.second * kNoise < front.points.back().second;
    if (!is_beaten && is_new) front.points.push_back(point);
  }
  return front;
}

std::string step_of(const Plan& plan, std::string_view op) {
  const Step* step = plan.find(op);
  return step == nullptr ? "-" : fmt::format("{} {}", step->variant, compact(step->point));
}

std::string title(const ReportData& data) {
  return fmt::format("Trade-off of {} and {}", to_string(data.pareto.first),
                     to_string(data.pareto.second));
}

// What `row` makes of each point, with its token count.
template <typename Row>
std::string rows(const std::vector<ParetoFront>& fronts, const Row& row) {
  std::string text;
  for (const ParetoFront& front : fronts)
    for (const ParetoPoint& point : front.points) text += row(front.num_tokens, point);
  return text;
}

}  // namespace

std::vector<ParetoFront> pareto_fronts(std::span<const TimedTrial> trials, Objective first,
                                       Objective second) {
  struct Sum {
    ParetoPoint point;
    int num_rounds = 0;
  };
  std::map<std::int64_t, std::map<std::string, Sum>> layers;
  for (const TimedTrial& timed : trials) {
    const Trial& trial = timed.trial;
    if (trial.stage != Stage::layer || !has_good_time(trial)) continue;
    const auto a = cost(first, trial);
    const auto b = cost(second, trial);
    if (!a || !b) continue;
    Sum& sum = layers[trial.num_tokens][trial.plan.key()];
    sum.point.plan = trial.plan;
    sum.point.first += *a;
    sum.point.second += *b;
    sum.point.source = std::max(sum.point.source, trial.source);
    ++sum.num_rounds;
  }
  std::vector<ParetoFront> fronts;
  for (auto& [num_tokens, of_tokens] : layers) {
    std::vector<ParetoPoint> points;
    for (auto& [key, sum] : of_tokens) {
      sum.point.first /= sum.num_rounds;
      sum.point.second /= sum.num_rounds;
      points.push_back(std::move(sum.point));
    }
    fronts.push_back(front_of(num_tokens, std::move(points)));
  }
  return fronts;
}

std::pair<Objective, Objective> parse_objectives(std::string_view text) {
  const std::size_t comma = text.find(',');
  if (comma == std::string_view::npos) {
    throw Error(ErrorKind::usage,
                fmt::format("--pareto {}: give two objectives, such as time,error", text));
  }
  const std::pair pair{parse_objective(text.substr(0, comma)),
                       parse_objective(text.substr(comma + 1))};
  if (pair.first == pair.second)
    throw Error(ErrorKind::usage, fmt::format("--pareto {}: give two different ones", text));
  return pair;
}

std::string objective_heading(Objective objective) {
  switch (objective) {
    case Objective::time:
      return "time us";
    case Objective::energy:
      return "energy mJ";
    case Objective::memory:
      return "memory MB";
    case Objective::error:
      break;
  }
  return "error";
}

std::string cost_text(Objective objective, double cost, Source source) {
  switch (objective) {
    case Objective::time:
      return time_text(cost, source);
    case Objective::energy:
      return fmt::format("{:.4g}", cost);
    case Objective::memory:
      return fmt::format("{:.3f}", cost / 1e6);
    case Objective::error:
      break;
  }
  return fmt::format("{:.5f}", cost);
}

std::string pareto_markdown(const ReportData& data) {
  const Objective first = data.pareto.first;
  const Objective second = data.pareto.second;
  const auto fronts = pareto_fronts(data.trials, first, second);
  if (fronts.empty()) return "";
  return fmt::format("\n#### {}\n\n| tokens | {} | {} | gemm1 | gemm2 |\n|--:|--:|--:|---|---|\n",
                     title(data), objective_heading(first), objective_heading(second)) +
         rows(fronts,
              [&](std::int64_t num_tokens, const ParetoPoint& point) {
                return fmt::format("| {} | {} | {} | {} | {} |\n", num_tokens,
                                   cost_text(first, point.first, point.source),
                                   cost_text(second, point.second, point.source),
                                   markdown_cell(step_of(point.plan, "gemm1")),
                                   markdown_cell(step_of(point.plan, "gemm2")));
              }) +
         "\nLayers of the search that no other beats in both.\n";
}

std::string pareto_html(const ReportData& data) {
  const Objective first = data.pareto.first;
  const Objective second = data.pareto.second;
  const auto fronts = pareto_fronts(data.trials, first, second);
  if (fronts.empty()) return "";
  return fmt::format(
             "<section class=\"card\">\n  <h2>{}</h2>\n"
             "  <p class=\"muted\">Layers of the search that no other beats in both.</p>\n"
             "  <div class=\"scroll\"><table class=\"plain\">\n"
             "    <thead><tr><th>tokens</th><th>{}</th><th>{}</th><th class=\"left\">gemm1</th>"
             "<th class=\"left\">gemm2</th></tr></thead>\n    <tbody>\n",
             title(data), objective_heading(first), objective_heading(second)) +
         rows(fronts,
              [&](std::int64_t num_tokens, const ParetoPoint& point) {
                return fmt::format(
                    "<tr><td>{}</td><td>{}</td><td>{}</td><td class=\"plan\">{}</td>"
                    "<td class=\"plan\">{}</td></tr>\n",
                    num_tokens, cost_text(first, point.first, point.source),
                    cost_text(second, point.second, point.source),
                    html_escape(step_of(point.plan, "gemm1")),
                    html_escape(step_of(point.plan, "gemm2")));
              }) +
         "    </tbody>\n  </table></div>\n</section>\n";
}

}  // namespace moetune
