// How strategies did on recorded searches: statistics over entries and seeds. Pure functions.
#pragma once

#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/trial.hpp"

namespace moetune {

// A strategy on one stage and token count of a journal, with one seed.
struct EntryRun {
  struct Improvement {
    std::uint64_t num_evaluations = 0;  // up to and including this look
    double gpu_s = 0;
    double ratio = 0;  // time over the best of the whole record, >= 1
  };

  Stage stage = Stage::gemm1;
  std::int64_t num_tokens = 0;
  std::uint64_t num_points = 0;       // of the record
  std::uint64_t num_evaluations = 0;  // until it ended by itself
  double gpu_s = 0;
  std::vector<Improvement> improvements;
  // Had it gone on with all that was left, in the time model's order.
  std::vector<Improvement> later;

  // The first look within `band` (0.01: 1 %) of the best, or null: by the strategy itself, and with
  // what is left after its end.
  const Improvement* reached(double band) const;
  const Improvement* reached_at_last(double band) const;
};

// A strategy on a journal: [seed][entry], the entries in the same order for every seed.
struct StrategyReplay {
  std::string strategy;
  std::vector<std::vector<EntryRun>> runs;
};

struct JournalReplay {
  std::string journal;              // its path
  nlohmann::ordered_json identity;  // the journal's
  std::uint64_t num_points = 0;     // over all entries
  std::vector<StrategyReplay> strategies;
};

// Over all entries and seeds. Runs that never got there count as infinite.
struct ReachStats {
  double band = 0;
  double share = 0;  // of the runs that got there, 0..1
  double median_evaluations = 0, p90_evaluations = 0;
  double median_share = 0, p90_share = 0;  // evaluations over the record's points
  double median_gpu_s = 0, p90_gpu_s = 0;
  // A whole table (all entries of a journal), by seed: GPU seconds until every entry got there,
  // those that the strategy ended too early for by going on in the time model's order.
  double median_table_gpu_s = 0, p90_table_gpu_s = 0;
};

// What a strategy costs until it ends by itself, a whole table by seed.
struct EndStats {
  double median_evaluations = 0, p90_evaluations = 0;
  double share = 0;  // median of evaluations over the record's points
  double median_gpu_s = 0, p90_gpu_s = 0;
  double within_1pct = 0;  // share of (entry, seed) whose best is within 1 %
  double within_5pct = 0;
};

ReachStats reach_stats(const StrategyReplay& replay, double band);
EndStats end_stats(const StrategyReplay& replay);

std::string replay_text(const std::vector<JournalReplay>& replays);
nlohmann::ordered_json replay_json(const std::vector<JournalReplay>& replays);
// Best so far over the best of the record, against the share of its points that were looked at;
// the median over entries, seeds and journals, a line each strategy. Self-contained.
std::string replay_svg(const std::vector<JournalReplay>& replays);

// What "GPU seconds" means, for whoever reads the figures.
inline constexpr const char* kReplayCost =
    "GPU seconds: for each first look its recorded median times the calls that the protocol makes "
    "(one to check the result; then graphs of 8 calls, one to warm up and 3 samples, fewer calls "
    "above 2 ms a graph, one sample above 1.25 times the best so far, and the check alone above "
    "200 us and 1.5 times the best). Without compilation, comparison and launch overhead";

}  // namespace moetune
