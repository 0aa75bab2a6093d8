// The optimisation journey of a layer, level by level: for people, for programs, and as a figure.
// Pure functions.
#pragma once

#include <array>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>

#include "report/bench_report.hpp"

namespace moetune {

inline constexpr int kNumLevels = 7;

// Level 0 to 6: "naive", "batched", ..., and in one line what it changes.
std::string_view level_name(int level);
std::string_view level_why(int level);

enum class LevelStatus { ok, skipped, failed };
std::string_view to_string(LevelStatus status);

struct JourneyLevel {
  LevelStatus status = LevelStatus::ok;
  std::string reason;  // why it is not ok
  Timing timing;
  double rel_err = 0;
  double max_err = 0;
  bool graph = false;  // timed as replays of a CUDA graph; else as launches on a stream
  int calls_a_sample = 0;
  std::int64_t workspace_bytes = 0;  // intermediates and outputs
  std::string note;                  // what is special about this layer; may be empty
};

// One layer at one token count.
struct JourneyRow {
  std::string model;  // with its shard
  Problem problem;
  std::string lookup;  // of level 6's plan, as in BenchRow
  Plan plan;
  std::array<JourneyLevel, kNumLevels> levels;
};

// Level 0's time over this level's, and the level before's (the last that has a time) over this
// one's; 0 where a time is missing.
double speedup_over_naive(const JourneyRow& row, int level);
double change_from_before(const JourneyRow& row, int level);

std::string journey_text(const BenchRun& run, std::span<const JourneyRow> rows);
nlohmann::ordered_json journey_json(const BenchRun& run, std::span<const JourneyRow> rows);
// One row of that, with run's commit and date: what a record keeps.
nlohmann::ordered_json journey_row_json(const BenchRun& run, const JourneyRow& row);
// Speedup over level 0 against the level, a line each row, on a logarithmic axis. Self-contained.
std::string journey_svg(const BenchRun& run, std::span<const JourneyRow> rows);

}  // namespace moetune
