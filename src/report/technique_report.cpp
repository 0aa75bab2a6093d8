#include "report/technique_report.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>

#include "report/summary.hpp"
#include "report/text_table.hpp"

namespace moetune {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kLegend =
    "L2 %: of the sectors that reads look for in L2, those found: GEMM1 / GEMM2, whole layer; by "
    "ncu (Nsight Compute), one kernel after the other, in a call of its own after one of another "
    "routing";

// Kernels that are no product; all that is neither these nor this project's GEMM is cuBLAS's.
constexpr std::string_view kSmallKernels[] = {
    "sort_small", "sort_count", "sort_place",  "sort_slots", "activate",
    "clear",      "combine",    "gather_rows", "swiglu",     "quantise_blocks"};

bool has_time(const TechniqueSide& side) {
  return side.status == LevelStatus::ok && side.timing.median_us > 0;
}

std::string time_cell(const TechniqueSide& side) {
  return has_time(side) ? fmt::format("{:.1f}", side.timing.median_us)
                        : std::string(to_string(side.status));
}

std::string hits_cell(const TechniqueSide& side) {
  const double all = l2_hit_rate(side.counters);
  if (std::isnan(all)) return "-";
  std::string text;
  for (const GemmHitRate& gemm : gemm_hit_rates(side))
    text += fmt::format("{}{:.1f}", text.empty() ? "" : " / ", 100 * gemm.hit_rate);
  return fmt::format("{}, {:.1f}", text, 100 * all);
}

Json hits_json(const TechniqueSide& side) {
  const double all = l2_hit_rate(side.counters);
  if (std::isnan(all)) return nullptr;
  Json gemms = Json::array();
  for (const GemmHitRate& gemm : gemm_hit_rates(side))
    gemms.push_back({{"kernel", gemm.kernel}, {"hit_rate", gemm.hit_rate}});  // NaN: null
  return {{"layer", all}, {"gemms", gemms}};
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
          {"rel_err", good ? Json(side.rel_err) : Json(nullptr)},
          {"l2_hit_rates", hits_json(side)}};
}

}  // namespace

std::vector<GemmHitRate> gemm_hit_rates(const TechniqueSide& side) {
  std::vector<GemmHitRate> rates;
  std::vector<KernelCounters> library;
  for (const KernelCounters& kernel : side.counters) {
    if (kernel.name.find("moe_") != std::string::npos) {
      rates.push_back({kernel.name, kernel.l2_hit_rate()});
    } else if (std::none_of(std::begin(kSmallKernels), std::end(kSmallKernels), [&](auto name) {
                 return kernel.name.find(name) != std::string::npos;
               })) {
      library.push_back(kernel);
    }
  }
  if (!library.empty()) rates.push_back({"cuBLAS", l2_hit_rate(library)});
  return rates;
}

double gain(const TechniquePair& pair) {
  return has_time(pair.without) && has_time(pair.with)
             ? pair.without.timing.median_us / pair.with.timing.median_us
             : 0;
}

std::string technique_text(const BenchRun& run, std::span<const TechniqueRow> rows) {
  std::string text = fmt::format("{}, driver {}, {} routing, seed {}\n", run.gpu.name,
                                 run.gpu.driver, to_string(run.routing), run.seed);
  for (const TechniqueRow& row : rows) {
    TextTable table({"<technique", "<without", "layer us", "L2 %", "<with", "layer us", "L2 %",
                     "gain", "<literature"});
    std::string notes;
    for (const TechniquePair& pair : row.pairs) {
      table.add({pair.name, pair.without.label, time_cell(pair.without), hits_cell(pair.without),
                 pair.with.label, time_cell(pair.with), hits_cell(pair.with),
                 speedup_text(gain(pair)), pair.expected.empty() ? "-" : pair.expected});
      for (const TechniqueSide* side : {&pair.without, &pair.with}) {
        if (!has_time(*side))
          notes += fmt::format("{}, {}: {}: {}\n", pair.name, side->label, to_string(side->status),
                               side->reason);
        if (row.no_counters.empty() && !side->no_counters.empty())
          notes += fmt::format("{}, {}: no L2 hit rates: {}\n", pair.name, side->label,
                               side->no_counters);
      }
      if (!pair.note.empty()) notes += fmt::format("{}: {}\n", pair.name, pair.note);
    }
    if (!row.no_counters.empty()) notes += fmt::format("no L2 hit rates: {}\n", row.no_counters);
    text += fmt::format("\n{}, {}, {} tokens; pairs start from: {}\n{}{}", row.model,
                        to_string(row.problem.dtype), row.problem.num_tokens, row.lookup,
                        table.text(), notes);
  }
  return text + "\n" + kLegend + "\n";
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
               {"no_l2_hit_rates", row.no_counters.empty() ? Json(nullptr) : Json(row.no_counters)},
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
