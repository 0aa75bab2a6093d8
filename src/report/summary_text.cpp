#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "report/pareto.hpp"
#include "report/summary.hpp"
#include "report/text_table.hpp"

namespace moetune {
namespace {

// A parameter's short form, and the value at which it says nothing and is left out.
struct Short {
  std::string_view name;
  std::string_view letters;
  int silent;
};
constexpr int kNever = -1;
constexpr std::array<Short, 18> kShort = {{{"BLOCK_SIZE_M", "M", kNever},
                                           {"BLOCK_SIZE_N", "N", kNever},
                                           {"BLOCK_SIZE_K", "K", kNever},
                                           {"NUM_WARPS", "W", kNever},
                                           {"NUM_STAGES", "S", kNever},
                                           {"GROUP_SIZE_M", "G", 1},
                                           {"ORDER", "O", 0},
                                           {"SPLIT_K", "SK", 1},
                                           {"FUSE_SWIGLU", "FUSED", 0},
                                           {"FUSE_COMBINE", "SUMS", 0},
                                           {"FP8", "FP8", 0},
                                           {"PING_PONG", "PINGPONG", 0},
                                           {"CLUSTER_SIZE", "C", 1},
                                           {"BLOCKS_PER_SM", "B", 1},
                                           {"LOAD_STEPS", "L", 1},
                                           {"STEP_BYTES", "ST", kNever},
                                           {"JOIN_GEMM1", "JOINED", 0},
                                           {"GATHER", "GATHER", 1}}};
constexpr std::string_view kLegend =
    "M N K: BLOCK_SIZE, W: NUM_WARPS, S: NUM_STAGES, G: GROUP_SIZE_M, O: ORDER, SK: SPLIT_K,\n"
    "C: CLUSTER_SIZE, B: BLOCKS_PER_SM, L: LOAD_STEPS, ST: STEP_BYTES, FUSED: FUSE_SWIGLU,\n"
    "SUMS: FUSE_COMBINE, JOINED: JOIN_GEMM1, GATHER0: rows are packed first;\n"
    "left out: G1, SK1, C1, B1, L1, O0 and switches that are off\n";

std::string step_text(const Plan& plan, std::string_view op, bool with_variant) {
  const Step* step = plan.find(op);
  if (step == nullptr) return "-";
  return (with_variant ? step->variant + ' ' : "") + compact(step->point);
}

std::set<std::string> variants_of(const Table& table) {
  std::set<std::string> names;
  for (const auto& [num_tokens, entry] : table.entries) {
    for (const Step& step : entry.plan.steps) names.insert(step.variant);
  }
  return names;
}

std::string note_of(const TableEntry& entry) {
  if (!entry.timing.unsteady) return entry.ties.empty() ? "" : "tie";
  return entry.ties.empty() ? "unsteady" : "tie, unsteady";
}

std::string layer_table(const Table& table) {
  const auto variants = variants_of(table);
  const bool mixed = variants.size() > 1;
  const bool any_tie =
      std::ranges::any_of(table.entries, [](const auto& e) { return !e.second.ties.empty(); });
  const bool any_unsteady =
      std::ranges::any_of(table.entries, [](const auto& e) { return e.second.timing.unsteady; });
  std::vector<std::string> headings = {"tokens",       "<gemm1",  "<gemm2",  "layer us",
                                       "reference us", "speedup", "rel_err", "<source"};
  const bool by_time = table.objective == Objective::time;
  if (!by_time) headings.push_back(objective_heading(table.objective));
  const bool any_note = any_tie || any_unsteady;
  if (any_note) headings.push_back("<note");
  TextTable text(headings);
  for (const auto& [num_tokens, entry] : table.entries) {
    std::vector<std::string> cells = {
        fmt::format("{}", num_tokens),
        step_text(entry.plan, "gemm1", mixed),
        step_text(entry.plan, "gemm2", mixed),
        time_text(entry.timing.median_us, entry.source),
        time_text(entry.reference_us, entry.source),
        speedup_text(entry.speedup),
        entry.source == Source::measured ? fmt::format("{:.5f}", entry.rel_err) : "-",
        std::string(to_string(entry.source))};
    if (!by_time) {
      const auto value = cost(table.objective, entry);
      cells.push_back(value ? cost_text(table.objective, *value) : "-");
    }
    if (any_note) cells.push_back(note_of(entry));
    text.add(std::move(cells));
  }
  std::string notes(kLegend);
  if (variants.size() == 1) notes += fmt::format("kernel variant: {}\n", *variants.begin());
  if (any_tie) notes += "tie: another plan's time was within noise of this one's\n";
  if (any_unsteady) notes += "unsteady: the GPU's clock did not settle while this was timed\n";
  return text.text() + notes;
}

std::set<Source> layer_sources(const Table& table) {
  std::set<Source> sources;
  for (const auto& [num_tokens, entry] : table.entries) sources.insert(entry.source);
  return sources;
}

std::set<Source> stage_sources(const SearchSummary& summary, Stage stage) {
  std::set<Source> sources;
  for (const StageResult& result : summary.stages) {
    if (result.stage != stage) continue;
    sources.insert(result.best.source);
    if (result.reference) sources.insert(result.reference->source);
  }
  return sources;
}

void add_stats(TextTable& table, std::string_view name, const std::optional<SpeedupStats>& stats,
               const std::set<Source>& sources) {
  if (!stats) {
    table.add({std::string(name), "-", "-", "-", "0", "-"});
    return;
  }
  std::string words;
  for (const Source source : sources) {
    words += fmt::format("{}{}", words.empty() ? "" : ", ", to_string(source));
  }
  table.add({std::string(name), speedup_text(stats->avg_speedup), speedup_text(stats->best_speedup),
             fmt::format("{:.0f}%", 100 * stats->win_rate),
             fmt::format("{}", stats->num_token_counts), words});
}

std::string stats_table(const SearchSummary& summary) {
  TextTable table({"<", "avg_speedup", "best_speedup", "win_rate", "token counts", "<source"});
  add_stats(table, "layer", layer_stats(summary), layer_sources(summary.table));
  for (const Stage stage : {Stage::gemm1, Stage::gemm2}) {
    add_stats(table, to_string(stage), stage_stats(summary, stage), stage_sources(summary, stage));
  }
  return fmt::format(
             "against the reference point: gemm1 {}, gemm2 {}\n"
             "avg_speedup: geometric mean over token counts; win_rate: share of them above 1x\n",
             step_text(summary.reference, "gemm1", true),
             step_text(summary.reference, "gemm2", true)) +
         table.text();
}

std::string failed_text(const std::map<TrialStatus, RejectedRule>& failed) {
  std::map<std::string, RejectedRule> by_name;
  for (const auto& [status, rule] : failed) by_name[std::string(to_string(status))] = rule;
  return rejected_text(by_name);
}

std::uint64_t total(const auto& counts) {
  std::uint64_t sum = 0;
  for (const auto& [name, rule] : counts) sum += rule.count;
  return sum;
}

}  // namespace

std::string compact(const Point& point) {
  std::string text;
  for (const auto& [name, value] : point.values()) {
    const auto* known = std::ranges::find(kShort, name, &Short::name);
    if (known != kShort.end() && value == known->silent) continue;
    if (!text.empty()) text += ' ';
    if (known == kShort.end()) {
      text += fmt::format("{}={}", name, value);
    } else if (known->letters.size() > 2 && value == 1) {  // a switch
      text += known->letters;
    } else {
      text += fmt::format("{}{}", known->letters, value);
    }
  }
  return text;
}

std::string time_text(double time_us, Source source, std::string_view unit) {
  if (!std::isfinite(time_us) || !(time_us > 0)) return "-";
  const std::string text = fmt::format("{:.1f}{}", time_us, unit);
  return source == Source::measured ? text : fmt::format("{} {}", text, to_string(source));
}

std::string speedup_text(double speedup) {
  return std::isfinite(speedup) && speedup > 0 ? fmt::format("{:.2f}x", speedup) : "-";
}

std::string source_footnote(const std::set<Source>& sources) {
  std::string text;
  if (sources.contains(Source::recorded)) {
    text += "recorded: measured on this kind of GPU in an earlier run, not in this one\n";
  }
  if (sources.contains(Source::predicted)) {
    text += "predicted: from a model of bytes, flops and waves, not a measurement\n";
  }
  return text;
}

std::string rejected_text(const std::map<std::string, RejectedRule>& rejected) {
  std::vector<std::pair<std::string, RejectedRule>> rules(rejected.begin(), rejected.end());
  std::ranges::stable_sort(rules, std::greater{}, [](const auto& r) { return r.second.count; });
  TextTable table({"count", "<reason", "<for example"});
  for (const auto& [name, rule] : rules) {
    table.add({fmt::format("{}", rule.count), name, rule.example});
  }
  return rules.empty() ? "" : table.text();
}

std::string summary_text(const SearchSummary& summary) {
  std::string text;
  if (!summary.table.complete()) {
    text += fmt::format("INCOMPLETE: no entry for {} tokens; --resume goes on\n\n",
                        fmt::join(summary.table.missing, ", "));
  }
  if (summary.table.entries.empty()) {
    text += "no whole layer has a time, so there is no best plan\n";
  } else {
    text += layer_table(summary.table);
  }
  text += '\n' + stats_table(summary);
  std::set<Source> sources = layer_sources(summary.table);
  for (const Stage stage : {Stage::gemm1, Stage::gemm2}) {
    sources.merge(stage_sources(summary, stage));
  }
  text += source_footnote(sources);
  text += fmt::format("\n{} trials, {} points rejected, {} failed\n", summary.num_trials,
                      total(summary.rejected), total(summary.failed));
  if (!summary.rejected.empty()) text += "\nrejected\n" + rejected_text(summary.rejected);
  if (!summary.failed.empty()) text += "\nfailed\n" + failed_text(summary.failed);
  return text;
}

}  // namespace moetune
