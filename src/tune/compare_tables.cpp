#include "tune/compare_tables.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "core/error.hpp"
#include "report/summary.hpp"
#include "report/text_table.hpp"
#include "table/merge.hpp"
#include "tune/finals.hpp"

namespace moetune {
namespace {

using Json = nlohmann::ordered_json;

constexpr double kCostBand = 1.01;  // as the finals have it

bool within_band(const TableEntry& a, const TableEntry& b, Objective objective) {
  if (objective != Objective::time) {
    const auto x = cost(objective, a);
    const auto y = cost(objective, b);
    if (!x || !y || std::max(*x, *y) > std::min(*x, *y) * kCostBand) return false;
  }
  const bool first_is_best = a.timing.median_us <= b.timing.median_us;
  return first_is_best ? is_tie(b.timing, a.timing) : is_tie(a.timing, b.timing);
}

// Whether a plan is the winner, or was measured as no worse, in both.
bool share_a_plan(const TableEntry& a, const TableEntry& b) {
  std::set<std::string> plans(a.ties.begin(), a.ties.end());
  plans.insert(a.plan.key());
  return plans.contains(b.plan.key()) ||
         std::any_of(b.ties.begin(), b.ties.end(),
                     [&](const std::string& plan) { return plans.contains(plan); });
}

std::string plan_text(const TableEntry& entry) {
  std::string text;
  for (const Step& step : entry.plan.steps) {
    text += fmt::format("{}{} {}", text.empty() ? "" : " | ", step.variant, compact(step.point));
  }
  return text;
}

std::string_view name(Agreement agreement) {
  switch (agreement) {
    case Agreement::same:
      return "same";
    case Agreement::tie:
      return "tie";
    case Agreement::different:
      return "different";
    case Agreement::missing:
      break;
  }
  return "missing";
}

std::string remark(const ComparedEntry& entry) {
  switch (entry.agreement) {
    case Agreement::same:
      return "same plan";
    case Agreement::tie:
      return entry.is_declared ? "declared tie" : "tie by time";
    case Agreement::different:
      return fmt::format("DIFFERENT: {}; {}", plan_text(entry.first), plan_text(entry.second));
    case Agreement::missing:
      break;
  }
  return fmt::format("MISSING in the {} table",
                     entry.first.plan.steps.empty() ? "first" : "second");
}

std::size_t num_declared(const TableComparison& comparison) {
  return static_cast<std::size_t>(std::count_if(
      comparison.entries.begin(), comparison.entries.end(), [](const ComparedEntry& entry) {
        return entry.agreement == Agreement::tie && entry.is_declared;
      }));
}

}  // namespace

double ComparedEntry::ratio() const {
  if (agreement == Agreement::missing) return 0;
  return second.timing.median_us / first.timing.median_us;
}

std::size_t TableComparison::count(Agreement agreement) const {
  return static_cast<std::size_t>(
      std::count_if(entries.begin(), entries.end(),
                    [&](const ComparedEntry& entry) { return entry.agreement == agreement; }));
}

double TableComparison::share() const {
  if (entries.empty()) return 0;
  return static_cast<double>(count(Agreement::same) + count(Agreement::tie)) /
         static_cast<double>(entries.size());
}

TableComparison compare_tables(const Table& first, const Table& second) {
  if (const std::string why = why_not_mergeable(first, second); !why.empty()) {
    throw Error(ErrorKind::input,
                fmt::format("the tables are not of the same tuning, {}; compare two searches with "
                            "the same settings on the same kind of GPU",
                            why));
  }
  std::set<std::int64_t> token_counts;
  for (const Table* table : {&first, &second})
    for (const auto& [num_tokens, entry] : table->entries) token_counts.insert(num_tokens);
  TableComparison comparison;
  for (const std::int64_t num_tokens : token_counts) {
    ComparedEntry& entry = comparison.entries.emplace_back();
    entry.num_tokens = num_tokens;
    const auto a = first.entries.find(num_tokens);
    const auto b = second.entries.find(num_tokens);
    if (a != first.entries.end()) entry.first = a->second;
    if (b != second.entries.end()) entry.second = b->second;
    if (a == first.entries.end() || b == second.entries.end()) continue;
    entry.is_declared = share_a_plan(entry.first, entry.second);
    entry.agreement = entry.first.plan == entry.second.plan ? Agreement::same
                      : entry.is_declared || within_band(entry.first, entry.second, first.objective)
                          ? Agreement::tie
                          : Agreement::different;
  }
  return comparison;
}

std::string comparison_text(const TableComparison& comparison) {
  TextTable table({"tokens", "first us", "second us", "second/first", "<"});
  for (const ComparedEntry& entry : comparison.entries) {
    table.add({fmt::format("{}", entry.num_tokens),
               time_text(entry.first.timing.median_us, entry.first.source),
               time_text(entry.second.timing.median_us, entry.second.source),
               entry.ratio() > 0 ? fmt::format("{:.3f}", entry.ratio()) : "-", remark(entry)});
  }
  return table.text() +
         fmt::format(
             "{} of {} entries agree ({:.1f} %; {:.0f} % count as reproducible): {} with the same "
             "plan, {} ties ({} declared); {} different, {} in one table only\n"
             "declared tie: a plan that wins in one table, or ties with its winner, does so in the "
             "other; tie by time: the winners' times are within the tie band\n",
             comparison.count(Agreement::same) + comparison.count(Agreement::tie),
             comparison.entries.size(), 100 * comparison.share(), 100 * kReproducible,
             comparison.count(Agreement::same), comparison.count(Agreement::tie),
             num_declared(comparison), comparison.count(Agreement::different),
             comparison.count(Agreement::missing));
}

Json comparison_json(const TableComparison& comparison) {
  Json json{{"num_entries", comparison.entries.size()},
            {"share", comparison.share()},
            {"reproducible", comparison.share() >= kReproducible}};
  for (const Agreement one :
       {Agreement::same, Agreement::tie, Agreement::different, Agreement::missing})
    json[fmt::format("num_{}", name(one))] = comparison.count(one);
  json["num_declared"] = num_declared(comparison);
  json["entries"] = Json::array();
  for (const ComparedEntry& entry : comparison.entries) {
    json["entries"].push_back({{"num_tokens", entry.num_tokens},
                               {"agreement", name(entry.agreement)},
                               {"declared", entry.is_declared},
                               {"first_us", positive_or_null(entry.first.timing.median_us)},
                               {"second_us", positive_or_null(entry.second.timing.median_us)},
                               {"ratio", positive_or_null(entry.ratio())},
                               {"first", entry.first.plan},
                               {"second", entry.second.plan}});
  }
  return json;
}

}  // namespace moetune
