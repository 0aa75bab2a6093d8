#include "report/journey_report.hpp"

#include <fmt/format.h>

#include "report/summary.hpp"
#include "report/text_table.hpp"

namespace moetune {
namespace {

using Json = nlohmann::ordered_json;

struct LevelText {
  std::string_view name;
  std::string_view why;
};
constexpr std::array<LevelText, kNumLevels> kLevels{{
    {"naive", "a loop over experts and tokens: three launches a slot, each reading all weights"},
    {"batched", "few launches, but every slot gets a copy of its expert's weights"},
    {"fused SwiGLU", "gate and up meet in registers: no [slots, 2I] intermediate"},
    {"memory-efficient", "weights are read where they lie; only the activation is stored"},
    {"grouped", "tokens sorted by expert: one cuBLAS product an expert, on the matrix units"},
    {"CUDA graph", "the same launches replayed as one, for a routing known beforehand"},
    {"tuned", "this project's kernels: one grouped product each, no host, no gather, best points"},
}};

bool has_time(const JourneyLevel& level) {
  return level.status == LevelStatus::ok && level.timing.median_us > 0;
}

double time_of(const JourneyRow& row, int level) {
  const JourneyLevel& one = row.levels.at(static_cast<std::size_t>(level));
  return has_time(one) ? one.timing.median_us : 0;
}

std::string timed_as(const JourneyLevel& level) {
  if (!has_time(level)) return "-";
  return fmt::format("{} x {}{}", level.timing.num_samples, level.calls_a_sample,
                     level.graph ? " graph" : " stream");
}

}  // namespace

std::string_view level_name(int level) {
  return kLevels.at(static_cast<std::size_t>(level)).name;
}
std::string_view level_why(int level) {
  return kLevels.at(static_cast<std::size_t>(level)).why;
}

std::string_view to_string(LevelStatus status) {
  switch (status) {
    case LevelStatus::ok:
      return "ok";
    case LevelStatus::skipped:
      return "skipped";
    case LevelStatus::failed:
      return "failed";
  }
  return "";
}

double speedup_over_naive(const JourneyRow& row, int level) {
  const double time_us = time_of(row, level);
  return time_us > 0 ? time_of(row, 0) / time_us : 0;
}

double change_from_before(const JourneyRow& row, int level) {
  const double time_us = time_of(row, level);
  for (int before = level - 1; before >= 0 && time_us > 0; --before)
    if (time_of(row, before) > 0) return time_of(row, before) / time_us;
  return 0;
}

std::string journey_text(const BenchRun& run, std::span<const JourneyRow> rows) {
  std::string text = fmt::format("{}, driver {}, {} routing, seed {}\n", run.gpu.name,
                                 run.gpu.driver, to_string(run.routing), run.seed);
  for (const JourneyRow& row : rows) {
    TextTable table({"level", "<name", "median us", "over level 0", "from before", "rel_err",
                     "workspace MB", "<timed as", "<why"});
    std::string notes;
    for (int i = 0; i < kNumLevels; ++i) {
      const JourneyLevel& level = row.levels.at(static_cast<std::size_t>(i));
      const bool good = has_time(level);
      table.add(
          {fmt::format("{}", i), std::string(level_name(i)),
           good ? fmt::format("{:.1f}", level.timing.median_us) : "-",
           speedup_text(speedup_over_naive(row, i)), speedup_text(change_from_before(row, i)),
           good ? fmt::format("{:.5f}", level.rel_err) : "-",
           good ? fmt::format("{:.1f}", static_cast<double>(level.workspace_bytes) / 1e6) : "-",
           timed_as(level),
           good ? std::string(level_why(i)) : std::string(to_string(level.status))});
      if (!good)
        notes += fmt::format("level {} {}: {}\n", i, to_string(level.status), level.reason);
      if (!level.note.empty()) notes += fmt::format("level {}: {}\n", i, level.note);
    }
    text += fmt::format("\n{}, {}, {} tokens; level 6: {}, {} {}\n{}{}", row.model,
                        to_string(row.problem.dtype), row.problem.num_tokens, row.lookup,
                        step_text(row.plan, "gemm1"), step_text(row.plan, "gemm2"), table.text(),
                        notes);
  }
  return text +
         "\ntimed as: samples x calls a sample, as launches on a stream (the host's share counts) "
         "or as a CUDA graph\n";
}

Json journey_row_json(const BenchRun& run, const JourneyRow& row) {
  Json json = {{"kind", "journey"},
               {"model", row.model},
               {"dtype", to_string(row.problem.dtype)},
               {"num_tokens", row.problem.num_tokens},
               {"routing", to_string(run.routing)},
               {"source", to_string(Source::measured)},
               {"lookup", row.lookup},
               {"gemm1", step_text(row.plan, "gemm1")},
               {"gemm2", step_text(row.plan, "gemm2")},
               {"levels", Json::array()},
               {"command", run.command},
               {"commit", run.commit},
               {"date", run.date}};
  for (int i = 0; i < kNumLevels; ++i) {
    const JourneyLevel& level = row.levels.at(static_cast<std::size_t>(i));
    const bool good = has_time(level);
    json["levels"].push_back({{"level", i},
                              {"name", level_name(i)},
                              {"status", to_string(level.status)},
                              {"reason", level.reason},
                              {"median_us", positive_or_null(good ? level.timing.median_us : 0)},
                              {"p10_us", positive_or_null(good ? level.timing.p10_us : 0)},
                              {"p90_us", positive_or_null(good ? level.timing.p90_us : 0)},
                              {"num_samples", good ? level.timing.num_samples : 0},
                              {"calls_a_sample", level.calls_a_sample},
                              {"timed_as", level.graph ? "graph" : "stream"},
                              {"speedup", positive_or_null(speedup_over_naive(row, i))},
                              {"change", positive_or_null(change_from_before(row, i))},
                              {"rel_err", good ? Json(level.rel_err) : Json(nullptr)},
                              {"max_err", good ? Json(level.max_err) : Json(nullptr)},
                              {"workspace_bytes", level.workspace_bytes},
                              {"note", level.note},
                              {"why", level_why(i)}});
  }
  return json;
}

Json journey_json(const BenchRun& run, std::span<const JourneyRow> rows) {
  Json json = run_json(run);
  for (const JourneyRow& row : rows) json["rows"].push_back(journey_row_json(run, row));
  return json;
}

}  // namespace moetune
