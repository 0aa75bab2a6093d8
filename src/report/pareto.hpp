// Which layers nothing beats in both of two objectives.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/objective.hpp"
#include "report/html_data.hpp"

namespace moetune {

struct ParetoPoint {
  Plan plan;
  double first = 0;  // costs in the two objectives, as core/objective.hpp has them
  double second = 0;
  Source source = Source::measured;
};

struct ParetoFront {
  std::int64_t num_tokens = 0;
  std::vector<ParetoPoint> points;  // ascending in the first objective; at least one
};

// By token count, of the whole layers among `trials` that have both costs, each the mean over its
// rounds. Differences of less than 1 % are noise.
std::vector<ParetoFront> pareto_fronts(std::span<const TimedTrial> trials, Objective first,
                                       Objective second);

// "time,error". Throws Error(usage).
std::pair<Objective, Objective> parse_objectives(std::string_view text);

std::string objective_heading(Objective objective);  // "time us", "error", "energy mJ", "memory MB"
// In the heading's unit; a time that was not measured with the word that says so.
std::string cost_text(Objective objective, double cost, Source source = Source::measured);

// The fronts of data.pareto as Markdown or as an HTML section; "" when no layer has both costs.
std::string pareto_markdown(const ReportData& data);
std::string pareto_html(const ReportData& data);

}  // namespace moetune
