// What a search came to: the final table on stdout, and the same as JSON. Pure functions.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
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

// ok, not screened out, and with a finite positive time.
bool has_good_time(const Trial& trial);

// `trial` where it beats `best`, which may be null: the faster of two good times, but one with the
// full protocol's 20 samples always beats a screening look. The result lives as long as its trial.
const Trial* better(const Trial* best, const Trial& trial);

// Every stage and token count that has a good time, ordered by stage, then token count. A trial is
// the reference's when each of its steps equals the step of `reference` with the same op.
std::vector<StageResult> stage_results(std::span<const Trial> trials, const Plan& reference);

struct SearchSummary {
  Plan reference;
  Table table;                                   // one layer row for each entry
  std::vector<StageResult> stages;               // gemm1 and gemm2; layer results are the table's
  std::map<std::string, RejectedRule> rejected;  // by rule, before compilation and by resources
  std::map<TrialStatus, RejectedRule> failed;    // statuses other than ok and rejected
  std::uint64_t num_trials = 0;
};

// `rejected` comes from enumerate(), summed over the spaces; rejected trials are added to it.
SearchSummary summarise(const Table& table, std::span<const Trial> trials, const Plan& reference,
                        std::map<std::string, RejectedRule> rejected);
// Adds `more` to `sum`, rule by rule.
void add_rejected(std::map<std::string, RejectedRule>& sum,
                  const std::map<std::string, RejectedRule>& more);

std::optional<SpeedupStats> layer_stats(const SearchSummary& summary);
std::optional<SpeedupStats> stage_stats(const SearchSummary& summary, Stage stage);

std::string summary_text(const SearchSummary& summary);
nlohmann::ordered_json summary_json(const SearchSummary& summary);
// One line a rule, the most frequent first: count, name, an example's reason. Also for `space`.
std::string rejected_text(const std::map<std::string, RejectedRule>& rejected);

// "M64 N128 K64 W4 S3 G8 SK2 FP8": what is 1 or off (G1, SK1, O0, a switch at 0) is left out.
std::string compact(const Point& point);
// "83.2", or with the word that says it is no measurement: "83.2 predicted"; the unit goes between.
// "-" for a time that is not finite and positive.
std::string time_text(double time_us, Source source, std::string_view unit = "");
// "1.52x", or "-" when not finite and positive.
std::string speedup_text(double speedup);
// What recorded and predicted mean, a line each for those among `sources`; "" when all is measured.
std::string source_footnote(const std::set<Source>& sources);
// For JSON: null when not finite and positive.
nlohmann::ordered_json positive_or_null(double value);

}  // namespace moetune
