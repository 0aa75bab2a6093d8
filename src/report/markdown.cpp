#include "report/markdown.hpp"

#include <fmt/format.h>

#include <vector>

#include "report/pareto.hpp"
#include "report/summary.hpp"

namespace moetune {

std::string markdown_cell(std::string_view text) {
  std::string result;
  for (const char c : text) {
    if (c == '|' || c == '*' || c == '_' || c == '`' || c == '<' || c == '\\') result += '\\';
    result += c == '\n' ? ' ' : c;
  }
  return result;
}

std::string markdown(const ReportData& data) {
  const TableIdentity& identity = data.identity;
  std::string text =
      fmt::format("### {} {} on {}\n\n", markdown_cell(identity.shape.model),
                  markdown_cell(to_string(identity.dtype)), markdown_cell(identity.gpu));
  text += "| tokens | layer us | reference us | floor us | speedup | source | tie |\n";
  text += "|--:|--:|--:|--:|--:|---|---|\n";
  std::vector<double> speedups;
  for (const auto& [num_tokens, point] : data.layers) {
    const TableEntry& entry = point.entry;
    text += fmt::format("| {} | {} | {} | {} | {} | {} | {} |\n", num_tokens,
                        time_text(entry.timing.median_us, entry.source),
                        time_text(entry.reference_us, entry.source),
                        time_text(point.floor_us, Source::measured), speedup_text(entry.speedup),
                        to_string(entry.source), point.is_tie ? "tie" : "");
    speedups.push_back(entry.speedup);
  }
  if (const auto stats = speedup_stats(speedups)) {
    text += fmt::format("\nLayer: {} on average (geometric mean), best {}, {}.",
                        speedup_text(stats->avg_speedup), speedup_text(stats->best_speedup),
                        source_names(data.sources()));
  } else {
    text += "\nNo entry was found.";
  }
  text += fmt::format(" {} trials{}.\n", data.num_trials,
                      data.complete ? "" : "; the search is not complete");
  text += "The floor is computed, not measured.\n";
  if (const std::string note = source_footnote(data.sources()); !note.empty()) text += "\n" + note;
  text += pareto_markdown(data);
  return text;
}

}  // namespace moetune
