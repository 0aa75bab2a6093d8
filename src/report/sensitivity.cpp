#include "report/sensitivity.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>

#include "report/summary.hpp"
#include "report/text_table.hpp"

namespace moetune {
namespace {

struct Tried {
  const Trial* best = nullptr;  // with a good time
  const Trial* last = nullptr;  // whatever came of it
};

// The trials of the start's op and variant at one stage and token count, by the point's key.
std::map<std::string, Tried> by_point(std::span<const Trial> trials, Stage stage,
                                      std::int64_t num_tokens, const Step& start) {
  std::map<std::string, Tried> points;
  for (const Trial& trial : trials) {
    if (trial.stage != stage || trial.num_tokens != num_tokens) continue;
    const Step* step = trial.plan.find(start.op);
    if (step == nullptr || step->variant != start.variant) continue;
    Tried& tried = points[step->point.key()];
    tried.best = better(tried.best, trial);
    tried.last = &trial;
  }
  return points;
}

std::string why_no_time(const Trial& trial) {
  if (trial.status == TrialStatus::rejected) return "rejected: " + trial.rule;
  if (trial.status != TrialStatus::ok) return std::string(to_string(trial.status));
  return trial.screened_out ? "stopped early: clearly slower" : "no time";
}

ValueEffect value_effect(const std::map<std::string, Tried>& points, const SearchSpace& space,
                         const Sensitivity& result, const std::string& name, int value) {
  ValueEffect effect;
  effect.value = value;
  Point point = result.start.point;
  effect.is_start = point.value_or(name, value) == value;
  point.set(name, value);
  const auto found = points.find(point.key());
  if (found == points.end()) {
    const auto rejection = space.reject(point);
    effect.legal = !rejection;
    effect.note = rejection ? "illegal: " + rejection->rule : "not tried";
    return effect;
  }
  const Trial* best = found->second.best;
  if (best == nullptr) {
    effect.note = why_no_time(*found->second.last);
    return effect;
  }
  effect.time_us = best->timing.median_us;
  effect.source = best->source;
  if (result.start_us > 0) effect.effect_percent = 100 * (effect.time_us / result.start_us - 1);
  return effect;
}

}  // namespace

Sensitivity sensitivity(std::span<const Trial> trials, Stage stage, std::int64_t num_tokens,
                        const SearchSpace& space, const Step& start) {
  Sensitivity result;
  result.stage = stage;
  result.num_tokens = num_tokens;
  result.start = start;
  const auto points = by_point(trials, stage, num_tokens, start);
  const auto found = points.find(start.point.key());
  if (found != points.end() && found->second.best != nullptr) {
    result.start_us = found->second.best->timing.median_us;
    result.start_source = found->second.best->source;
  }
  for (const Parameter& parameter : space.parameters) {
    ParameterEffect& effect = result.parameters.emplace_back();
    effect.name = parameter.name;
    double lowest = 0;
    double highest = 0;
    for (const int value : parameter.values) {
      effect.values.push_back(value_effect(points, space, result, parameter.name, value));
      lowest = std::min(lowest, effect.values.back().effect_percent);
      highest = std::max(highest, effect.values.back().effect_percent);
    }
    effect.range_percent = highest - lowest;
  }
  return result;
}

std::string sensitivity_text(const Sensitivity& s) {
  std::string text =
      fmt::format("sensitivity of {} at {} token{} around {} {}: {}\n", to_string(s.stage),
                  s.num_tokens, s.num_tokens == 1 ? "" : "s", s.start.variant,
                  compact(s.start.point), time_text(s.start_us, s.start_source, " us"));
  if (!(s.start_us > 0)) text += "the start point has no time, so no effect is known\n";
  text += "effect: time against the start point's, + is slower; range: largest minus smallest\n";
  TextTable table({"<parameter", "range", "value", "time us", "effect", "<"});
  std::set<Source> sources{s.start_source};
  for (const ParameterEffect& parameter : s.parameters) {
    std::string name = parameter.name;
    std::string range = s.start_us > 0 ? fmt::format("{:.1f}%", parameter.range_percent) : "-";
    for (const ValueEffect& value : parameter.values) {
      const bool known = value.time_us > 0 && s.start_us > 0;
      table.add({std::exchange(name, ""), std::exchange(range, ""), fmt::format("{}", value.value),
                 time_text(value.time_us, value.source),
                 known ? fmt::format("{:+.1f}%", value.effect_percent) : "-",
                 value.is_start ? "start" : value.note});
      sources.insert(value.source);
    }
  }
  return text + table.text() + source_footnote(sources);
}

nlohmann::ordered_json sensitivity_json(const Sensitivity& s) {
  using Json = nlohmann::ordered_json;
  Json json = {{"stage", to_string(s.stage)},
               {"num_tokens", s.num_tokens},
               {"variant", s.start.variant},
               {"start", s.start.point},
               {"start_us", positive_or_null(s.start_us)},
               {"source", to_string(s.start_source)},
               {"parameters", Json::array()}};
  const bool start_known = s.start_us > 0;
  for (const ParameterEffect& parameter : s.parameters) {
    Json values = Json::array();
    for (const ValueEffect& value : parameter.values) {
      const bool timed = value.time_us > 0;
      values.push_back(
          {{"value", value.value},
           {"is_start", value.is_start},
           {"legal", value.legal},
           {"time_us", positive_or_null(value.time_us)},
           {"effect_percent", timed && start_known ? Json(value.effect_percent) : Json(nullptr)},
           {"source", timed ? Json(to_string(value.source)) : Json(nullptr)},
           {"note", value.note}});
    }
    json["parameters"].push_back(
        {{"name", parameter.name},
         {"range_percent", start_known ? Json(parameter.range_percent) : Json(nullptr)},
         {"values", std::move(values)}});
  }
  return json;
}

}  // namespace moetune
