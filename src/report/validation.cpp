#include "report/validation.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "report/summary.hpp"
#include "report/text_table.hpp"

namespace moetune {
namespace {

using Json = nlohmann::ordered_json;

// Names come from files: they must not break the line or reach the terminal as its codes.
std::string one_line(std::string text) {
  std::replace_if(
      text.begin(), text.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; }, '?');
  return text;
}

std::string finding_text(const Finding& finding) {
  return one_line(fmt::format("{}{}: {}", finding.fails ? "" : "note, ", to_string(finding.check),
                              finding.message));
}

std::string verdict(const TableReport& report, const EntryReport& entry) {
  std::string text = entry.good() ? "good" : "FALLS SHORT";
  if (report.error && !entry.trial) text += ", not run";
  const char* separator = "  ";
  for (const Finding& finding : entry.findings) {
    text += separator + finding_text(finding);
    separator = "; ";
  }
  return text;
}

// "-" for what was not timed or did not run right.
std::string trial_text(const std::optional<Trial>& trial) {
  if (!trial || trial->status != TrialStatus::ok) return "-";
  return time_text(trial->timing.median_us, trial->source);
}

Json trial_json(const std::optional<Trial>& trial) {
  return trial ? Json(*trial) : Json(nullptr);
}

Json findings_json(const std::vector<Finding>& findings) {
  Json json = Json::array();
  for (const Finding& finding : findings) {
    json.push_back({{"check", to_string(finding.check)},
                    {"fails", finding.fails},
                    {"message", finding.message}});
  }
  return json;
}

Json entry_json(const EntryReport& entry) {
  return {{"num_tokens", entry.num_tokens},
          {"good", entry.good()},
          {"source", to_string(entry.entry.source)},
          {"recorded_us", entry.entry.timing.median_us},
          {"recorded_speedup", entry.entry.speedup},
          {"trial", trial_json(entry.trial)},
          {"reference_trial", trial_json(entry.reference_trial)},
          {"findings", findings_json(entry.findings)}};
}

}  // namespace

std::string validation_text(const TableReport& report) {
  if (report.error && report.error->kind() == ErrorKind::input)
    return fmt::format("UNREADABLE  {}\n", one_line(report.error->what()));
  const TableIdentity& identity = report.identity;
  std::string text =
      fmt::format("{}\n{}, {}, {}, {} entries\n", one_line(report.path), one_line(identity.gpu),
                  one_line(identity.shape.model), to_string(identity.dtype), report.entries.size());
  if (!report.entries.empty()) {
    TextTable table({"tokens", "recorded us", "speedup", "now us", "reference us", "rel_err", "<"});
    for (const EntryReport& entry : report.entries) {
      const double rel_err = entry.trial ? entry.trial->rel_err : entry.entry.rel_err;
      table.add({fmt::to_string(entry.num_tokens),
                 time_text(entry.entry.timing.median_us, entry.entry.source),
                 fmt::format("{:.2f}", entry.entry.speedup), trial_text(entry.trial),
                 trial_text(entry.reference_trial), fmt::format("{:.4f}", rel_err),
                 verdict(report, entry)});
    }
    text += table.text();
  }
  for (const Finding& finding : report.findings)
    text += fmt::format("{}{}\n", finding.fails ? "FALLS SHORT  " : "", finding_text(finding));
  if (report.error)
    text += fmt::format("NOT CHECKED ON THE GPU  {}\n", one_line(report.error->what()));
  return text;
}

std::string validation_summary(std::span<const TableReport> reports, bool checked_on_device) {
  std::size_t num_good = 0, num_unreadable = 0, num_entries = 0, num_good_entries = 0;
  for (const TableReport& report : reports) {
    num_good += report.good() ? 1 : 0;
    num_unreadable += report.error && report.error->kind() == ErrorKind::input ? 1 : 0;
    num_entries += report.entries.size();
    num_good_entries += static_cast<std::size_t>(
        std::count_if(report.entries.begin(), report.entries.end(),
                      [](const EntryReport& entry) { return entry.good(); }));
  }
  std::string text =
      fmt::format("{} of {} tables good", num_good, reports.size()) +
      (num_unreadable ? fmt::format(" ({} unreadable)", num_unreadable) : std::string()) +
      fmt::format(", {} of {} entries", num_good_entries, num_entries);
  if (!checked_on_device) text += "; correctness and speed were not checked (no GPU was used)";
  return text + "\n";
}

Json validation_json(std::span<const TableReport> reports, bool checked_on_device) {
  Json tables = Json::array();
  for (const TableReport& report : reports) {
    Json entries = Json::array();
    for (const EntryReport& entry : report.entries) entries.push_back(entry_json(entry));
    tables.push_back({{"path", report.path},
                      {"good", report.good()},
                      {"checked_on_device", report.checked_on_device},
                      {"error", report.error ? Json(report.error->what()) : Json(nullptr)},
                      {"findings", findings_json(report.findings)},
                      {"entries", std::move(entries)}});
  }
  return {{"schema", "moe-tune-validation"},
          {"schema_version", 1},
          {"good", std::all_of(reports.begin(), reports.end(),
                               [](const TableReport& report) { return report.good(); })},
          {"checked_on_device", checked_on_device},
          {"tables", std::move(tables)}};
}

}  // namespace moetune
