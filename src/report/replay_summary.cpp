#include "report/replay_summary.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "report/text_table.hpp"

namespace moetune {
namespace {

using Json = nlohmann::ordered_json;

constexpr double kNever = std::numeric_limits<double>::infinity();

// The value that a share `q` of the values does not exceed; infinities sort last.
double quantile(std::vector<double> values, double q) {
  if (values.empty()) return kNever;
  std::sort(values.begin(), values.end());
  const double rank = std::ceil(q * static_cast<double>(values.size())) - 1;
  return values[static_cast<std::size_t>(std::max(0.0, rank))];
}

std::string text(double value, int digits, const char* unit = "") {
  return std::isfinite(value) ? fmt::format("{:.{}f}{}", value, digits, unit) : "-";
}

const EntryRun::Improvement* first_within(const std::vector<EntryRun::Improvement>& improvements,
                                          double band) {
  for (const EntryRun::Improvement& improvement : improvements)
    if (improvement.ratio <= 1 + band) return &improvement;
  return nullptr;
}

Json finite(double value) {
  return std::isfinite(value) ? Json(value) : Json(nullptr);
}

Json reach_json(const ReachStats& stats) {
  return {
      {"reached", stats.share},
      {"evaluations",
       {{"median", finite(stats.median_evaluations)}, {"p90", finite(stats.p90_evaluations)}}},
      {"share_of_grid", {{"median", finite(stats.median_share)}, {"p90", finite(stats.p90_share)}}},
      {"gpu_s", {{"median", finite(stats.median_gpu_s)}, {"p90", finite(stats.p90_gpu_s)}}},
      {"table_gpu_s",
       {{"median", finite(stats.median_table_gpu_s)}, {"p90", finite(stats.p90_table_gpu_s)}}}};
}

}  // namespace

const EntryRun::Improvement* EntryRun::reached(double band) const {
  return first_within(improvements, band);
}

const EntryRun::Improvement* EntryRun::reached_at_last(double band) const {
  const Improvement* at = reached(band);
  return at != nullptr ? at : first_within(later, band);
}

ReachStats reach_stats(const StrategyReplay& replay, double band) {
  std::vector<double> evaluations, shares, seconds, tables;
  std::size_t num_reached = 0;
  for (const std::vector<EntryRun>& of_seed : replay.runs) {
    double table_s = 0;
    for (const EntryRun& run : of_seed) {
      const EntryRun::Improvement* at = run.reached(band);
      num_reached += at != nullptr;
      const double needed = at != nullptr ? static_cast<double>(at->num_evaluations) : kNever;
      evaluations.push_back(needed);
      shares.push_back(needed / static_cast<double>(run.num_points));
      seconds.push_back(at != nullptr ? at->gpu_s : kNever);
      const EntryRun::Improvement* at_last = run.reached_at_last(band);
      table_s += at_last != nullptr ? at_last->gpu_s : kNever;
    }
    tables.push_back(table_s);
  }
  ReachStats stats;
  stats.band = band;
  stats.share = evaluations.empty()
                    ? 0
                    : static_cast<double>(num_reached) / static_cast<double>(evaluations.size());
  stats.median_evaluations = quantile(evaluations, 0.5);
  stats.p90_evaluations = quantile(evaluations, 0.9);
  stats.median_share = quantile(shares, 0.5);
  stats.p90_share = quantile(shares, 0.9);
  stats.median_gpu_s = quantile(seconds, 0.5);
  stats.p90_gpu_s = quantile(seconds, 0.9);
  stats.median_table_gpu_s = quantile(tables, 0.5);
  stats.p90_table_gpu_s = quantile(tables, 0.9);
  return stats;
}

EndStats end_stats(const StrategyReplay& replay) {
  std::vector<double> evaluations, seconds, shares;
  for (const std::vector<EntryRun>& of_seed : replay.runs) {
    double num_evaluations = 0, num_points = 0, gpu_s = 0;
    for (const EntryRun& run : of_seed) {
      num_evaluations += static_cast<double>(run.num_evaluations);
      num_points += static_cast<double>(run.num_points);
      gpu_s += run.gpu_s;
    }
    evaluations.push_back(num_evaluations);
    shares.push_back(num_evaluations / num_points);
    seconds.push_back(gpu_s);
  }
  return {quantile(evaluations, 0.5),     quantile(evaluations, 0.9),
          quantile(shares, 0.5),          quantile(seconds, 0.5),
          quantile(seconds, 0.9),         reach_stats(replay, 0.01).share,
          reach_stats(replay, 0.05).share};
}

std::string replay_text(const std::vector<JournalReplay>& replays) {
  std::string result;
  for (const JournalReplay& replay : replays) {
    const Json& identity = replay.identity;
    result += fmt::format("{}\n{}, {} {}, {} points, {} seeds\n", replay.journal,
                          identity.value("gpu", "?"), identity.value("model", "?"),
                          identity.value("dtype", "?"), replay.num_points,
                          replay.strategies.empty() ? 0 : replay.strategies.front().runs.size());
    TextTable table({"<strategy", "<within", "reached", "evals", "p90", "of grid", "GPU ms", "p90",
                     "table GPU s", "p90", "evals to end", "of grid", "GPU s to end"});
    for (const StrategyReplay& strategy : replay.strategies) {
      const EndStats end = end_stats(strategy);
      for (const double band : {0.05, 0.01}) {
        const ReachStats stats = reach_stats(strategy, band);
        const bool is_first = band > 0.01;
        table.add({is_first ? strategy.strategy : "", fmt::format("{:.0f} %", 100 * band),
                   text(100 * stats.share, 1, " %"), text(stats.median_evaluations, 0),
                   text(stats.p90_evaluations, 0), text(100 * stats.median_share, 1, " %"),
                   text(1e3 * stats.median_gpu_s, 1), text(1e3 * stats.p90_gpu_s, 1),
                   text(stats.median_table_gpu_s, 2), text(stats.p90_table_gpu_s, 2),
                   is_first ? text(end.median_evaluations, 0) : "",
                   is_first ? text(100 * end.share, 1, " %") : "",
                   is_first ? text(end.median_gpu_s, 2) : ""});
      }
    }
    result += table.text() + "\n";
  }
  return result +
         fmt::format(
             "reached: share of (stage, token count, seed) that got within 5 or 1 % of the "
             "record's best;\n"
             "evals, GPU ms: until then, median and p90; -: fewer than that share got there\n"
             "table GPU s: all entries until then, by seed; where the strategy ended before, it "
             "goes "
             "on with what is left in the time model's order\n"
             "to end: a whole table, until the strategy stops by itself\n{}\n",
             kReplayCost);
}

Json replay_json(const std::vector<JournalReplay>& replays) {
  Json journals = Json::array();
  for (const JournalReplay& replay : replays) {
    Json strategies = Json::array();
    for (const StrategyReplay& strategy : replay.strategies) {
      const EndStats end = end_stats(strategy);
      Json by_entry = Json::array();
      for (std::size_t i = 0; !strategy.runs.empty() && i < strategy.runs.front().size(); ++i) {
        StrategyReplay one{strategy.strategy, {}};
        for (const std::vector<EntryRun>& of_seed : strategy.runs) one.runs.push_back({of_seed[i]});
        const EntryRun& entry = strategy.runs.front()[i];
        const EndStats end_of = end_stats(one);
        by_entry.push_back(Json{{"stage", to_string(entry.stage)},
                                {"num_tokens", entry.num_tokens},
                                {"num_points", entry.num_points},
                                {"evaluations", end_of.median_evaluations},
                                {"within_1pct", end_of.within_1pct},
                                {"within_5pct", end_of.within_5pct}});
      }
      strategies.push_back(Json{
          {"strategy", strategy.strategy},
          {"to_5pct", reach_json(reach_stats(strategy, 0.05))},
          {"to_1pct", reach_json(reach_stats(strategy, 0.01))},
          {"to_end",
           {{"evaluations", {{"median", end.median_evaluations}, {"p90", end.p90_evaluations}}},
            {"share_of_grid", end.share},
            {"gpu_s", {{"median", end.median_gpu_s}, {"p90", end.p90_gpu_s}}},
            {"within_1pct", end.within_1pct},
            {"within_5pct", end.within_5pct}}},
          {"entries", by_entry}});
    }
    journals.push_back(
        Json{{"journal", replay.journal},
             {"identity", replay.identity},
             {"num_points", replay.num_points},
             {"num_seeds", replay.strategies.empty() ? 0 : replay.strategies.front().runs.size()},
             {"strategies", strategies}});
  }
  return {{"schema", "moe-tune-replay"},
          {"schema_version", 1},
          {"cost_model", kReplayCost},
          {"journals", journals}};
}

}  // namespace moetune
