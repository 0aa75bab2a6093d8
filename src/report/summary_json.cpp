#include <cmath>

#include "report/summary.hpp"

namespace moetune {
namespace {

using Json = nlohmann::ordered_json;

void add_stats(Json& json, const std::optional<SpeedupStats>& stats) {
  json["num_token_counts"] = stats ? stats->num_token_counts : 0;
  json["avg_speedup"] = stats ? Json(stats->avg_speedup) : nullptr;
  json["best_speedup"] = stats ? Json(stats->best_speedup) : nullptr;
  json["win_rate"] = stats ? Json(stats->win_rate) : nullptr;
}

Json layer_row(std::int64_t num_tokens, const TableEntry& entry) {
  return {
      {"num_tokens", num_tokens},
      {"plan", entry.plan},
      {"layer_us", positive_or_null(entry.timing.median_us)},
      {"p10_us", positive_or_null(entry.timing.p10_us)},
      {"p90_us", positive_or_null(entry.timing.p90_us)},
      {"reference_us", positive_or_null(entry.reference_us)},
      {"speedup", positive_or_null(entry.speedup)},
      {"rel_err", entry.rel_err},
      {"quantisation_err", positive_or_null(entry.quantisation_err)},
      {"energy_mj", positive_or_null(entry.energy_mj)},
      {"workspace_bytes", entry.workspace_bytes > 0 ? Json(entry.workspace_bytes) : Json(nullptr)},
      {"clock_mhz", entry.timing.clock_mhz > 0 ? Json(entry.timing.clock_mhz) : Json(nullptr)},
      {"ties", entry.ties},
      {"source", to_string(entry.source)}};
}

Json stage_row(const StageResult& result) {
  Json json = {{"num_tokens", result.num_tokens},
               {"plan", result.best.plan},
               {"time_us", result.best.timing.median_us},
               {"source", to_string(result.best.source)},
               {"reference_us", nullptr},
               {"reference_source", nullptr},
               {"speedup", positive_or_null(result.speedup())},
               {"rel_err", result.best.rel_err}};
  if (result.reference) {
    json["reference_us"] = result.reference->timing.median_us;
    json["reference_source"] = to_string(result.reference->source);
  }
  return json;
}

Json counted(const RejectedRule& rule) {
  return {{"count", rule.count}, {"example", rule.example}};
}

}  // namespace

Json positive_or_null(double value) {
  return std::isfinite(value) && value > 0 ? Json(value) : nullptr;
}

Json summary_json(const SearchSummary& summary) {
  Json json;
  json["complete"] = summary.table.complete();
  json["missing"] = summary.table.missing;
  json["objective"] = to_string(summary.table.objective);
  json["num_trials"] = summary.num_trials;
  json["reference"] = summary.reference;
  json["average"] = "geometric mean over token counts";

  Json& layer = json["layer"];
  add_stats(layer, layer_stats(summary));
  layer["rows"] = Json::array();
  for (const auto& [num_tokens, entry] : summary.table.entries) {
    layer["rows"].push_back(layer_row(num_tokens, entry));
  }
  for (const Stage stage : {Stage::gemm1, Stage::gemm2}) {
    Json& section = json[std::string(to_string(stage))];
    add_stats(section, stage_stats(summary, stage));
    section["rows"] = Json::array();
    for (const StageResult& result : summary.stages) {
      if (result.stage == stage) section["rows"].push_back(stage_row(result));
    }
  }
  json["rejected"] = Json::object();
  for (const auto& [rule, count] : summary.rejected) json["rejected"][rule] = counted(count);
  json["failed"] = Json::object();
  for (const auto& [status, count] : summary.failed) {
    json["failed"][std::string(to_string(status))] = counted(count);
  }
  return json;
}

}  // namespace moetune
