#include "report/technique_report.hpp"

#include <fmt/format.h>

#include "report/summary.hpp"
#include "report/text_table.hpp"

namespace moetune {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kNoCounters =
    "L2 hit rates are not collected: they need a profiler's access to the GPU's counters";

bool has_time(const TechniqueSide& side) {
  return side.status == LevelStatus::ok && side.timing.median_us > 0;
}

std::string time_cell(const TechniqueSide& side) {
  return has_time(side) ? fmt::format("{:.1f}", side.timing.median_us)
                        : std::string(to_string(side.status));
}

Json side_json(const TechniqueSide& side) {
  const bool good = has_time(side);
  return {{"label", side.label},
          {"plan", side.plan},
          {"status", to_string(side.status)},
          {"reason", side.reason},
          {"median_us", positive_or_null(good ? side.timing.median_us : 0)},
          {"p10_us", positive_or_null(good ? side.timing.p10_us : 0)},
          {"p90_us", positive_or_null(good ? side.timing.p90_us : 0)},
          {"num_samples", good ? side.timing.num_samples : 0},
          {"rel_err", good ? Json(side.rel_err) : Json(nullptr)}};
}

}  // namespace

double gain(const TechniquePair& pair) {
  return has_time(pair.without) && has_time(pair.with)
             ? pair.without.timing.median_us / pair.with.timing.median_us
             : 0;
}

std::string technique_text(const BenchRun& run, std::span<const TechniqueRow> rows) {
  std::string text = fmt::format("{}, driver {}, {} routing, seed {}\n", run.gpu.name,
                                 run.gpu.driver, to_string(run.routing), run.seed);
  for (const TechniqueRow& row : rows) {
    TextTable table(
        {"<technique", "<without", "layer us", "<with", "layer us", "gain", "<literature"});
    std::string notes;
    for (const TechniquePair& pair : row.pairs) {
      table.add({pair.name, pair.without.label, time_cell(pair.without), pair.with.label,
                 time_cell(pair.with), speedup_text(gain(pair)),
                 pair.expected.empty() ? "-" : pair.expected});
      for (const TechniqueSide* side : {&pair.without, &pair.with})
        if (!has_time(*side))
          notes += fmt::format("{}, {}: {}: {}\n", pair.name, side->label, to_string(side->status),
                               side->reason);
      if (!pair.note.empty()) notes += fmt::format("{}: {}\n", pair.name, pair.note);
    }
    text += fmt::format("\n{}, {}, {} tokens; pairs start from: {}\n{}{}", row.model,
                        to_string(row.problem.dtype), row.problem.num_tokens, row.lookup,
                        table.text(), notes);
  }
  return text + "\n" + kNoCounters + "\n";
}

Json technique_row_json(const BenchRun& run, const TechniqueRow& row) {
  Json json = {{"kind", "techniques"},
               {"model", row.model},
               {"dtype", to_string(row.problem.dtype)},
               {"num_tokens", row.problem.num_tokens},
               {"routing", to_string(run.routing)},
               {"source", to_string(Source::measured)},
               {"lookup", row.lookup},
               {"pairs", Json::array()},
               {"l2_hit_rates", nullptr},
               {"command", run.command},
               {"commit", run.commit},
               {"date", run.date}};
  for (const TechniquePair& pair : row.pairs) {
    json["pairs"].push_back(
        {{"name", pair.name},
         {"without", side_json(pair.without)},
         {"with", side_json(pair.with)},
         {"gain", positive_or_null(gain(pair))},
         {"literature", pair.expected.empty() ? Json(nullptr) : Json(pair.expected)},
         {"note", pair.note}});
  }
  return json;
}

Json technique_json(const BenchRun& run, std::span<const TechniqueRow> rows) {
  Json json = run_json(run);
  for (const TechniqueRow& row : rows) json["rows"].push_back(technique_row_json(run, row));
  return json;
}

}  // namespace moetune
