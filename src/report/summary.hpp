// What a search came to: the final table on stdout, and the same as JSON. Pure functions.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/trial.hpp"
#include "search/legal_points.hpp"
#include "table/table.hpp"

namespace moetune {

// Over the token counts that have both times: speedup = reference_us / time_us.
struct SpeedupStats {
  int num_token_counts = 0;
  double avg_speedup = 0;  // geometric mean
  double best_speedup = 0;
  double win_rate = 0;  // share of token counts with speedup > 1, 0..1
};
// Speedups that are not finite and positive are left out; nothing when none remains.
std::optional<SpeedupStats> speedup_stats(std::span<const double> speedups);

// The fastest trial of one stage at one token count, beside the reference point's.
struct StageResult {
  Stage stage = Stage::gemm1;
  std::int64_t num_tokens = 0;
  Trial best;
  std::optional<Trial> reference;  // nothing when it has no good time
  double speedup() const;          // 0 without a reference
};

// Among trials that are ok, not screened out and have a finite positive time. Where any has the
// full protocol's samples (20), only those compete. Nothing when there is none.
const Trial* best_trial(std::span<const Trial> trials);

// Every stage and token count that has an ok trial, ordered by stage, then token count. A trial is
// the reference's when each of its steps equals the step of `reference` with the same op.
std::vector<StageResult> stage_results(std::span<const Trial> trials, const Plan& reference);

struct SearchSummary {
  Table table;                                   // one layer row for each entry
  std::vector<StageResult> stages;               // gemm1 and gemm2; layer results are the table's
  std::map<std::string, RejectedRule> rejected;  // by rule, before compilation and by resources
  std::map<TrialStatus, std::uint64_t> failed;   // statuses other than ok and rejected
  std::uint64_t num_trials = 0;
};

// `rejected` comes from enumerate(), summed over the spaces; rejected trials are added to it.
SearchSummary summarise(const Table& table, std::span<const Trial> trials, const Plan& reference,
                        std::map<std::string, RejectedRule> rejected);
// Adds `more` to `sum`, rule by rule.
void add_rejected(std::map<std::string, RejectedRule>& sum,
                  const std::map<std::string, RejectedRule>& more);

std::string summary_text(const SearchSummary& summary);
nlohmann::ordered_json summary_json(const SearchSummary& summary);
// One line a rule: count, name, an example's reason. Also for the `space` command.
std::string rejected_text(const std::map<std::string, RejectedRule>& rejected);

// "M64 N128 K64 W4 S3 G8 SK2 FP8": what is 1 or off (G1, SK1, O0, a switch at 0) is left out.
std::string compact(const Point& point);
// "83.2", or with the word that says it is no measurement: "83.2 predicted". "-" when not positive.
std::string time_text(double time_us, Source source);

}  // namespace moetune
