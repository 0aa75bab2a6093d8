#include "tune/merge_journals.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>
#include <tuple>

#include "core/error.hpp"

namespace moetune {
namespace {

using Json = nlohmann::ordered_json;

std::string line(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

void check_same(const NamedJournal& a, const NamedJournal& b) {
  const Json& x = a.contents.header.at("identity");
  const Json& y = b.contents.header.at("identity");
  if (x == y) return;
  const auto text = [](const Json& json, const std::string& key) {
    return json.contains(key) ? json.at(key).dump() : std::string("missing");
  };
  std::set<std::string> keys;
  for (const Json* json : {&x, &y})
    for (const auto& [key, value] : json->items()) keys.insert(key);
  for (const std::string& key : keys) {
    if (text(x, key) == text(y, key)) continue;
    throw Error(ErrorKind::input,
                fmt::format("{} and {} are of different searches: {} is {} and {}; merge them into "
                            "different folders",
                            a.path, b.path, key, text(x, key), text(y, key)));
  }
}

int status_rank(const Trial& trial) {
  switch (trial.status) {
    case TrialStatus::wrong_result:
      return 0;
    case TrialStatus::ok:
      return trial.screened_out ? 2 : 1;
    case TrialStatus::rejected:
      return 3;
    case TrialStatus::compile_failed:
      return 4;
    case TrialStatus::launch_failed:
    case TrialStatus::timed_out:
      break;
  }
  return 5;
}

// A total order: records that differ in nothing but their text are ordered by it.
bool is_better(const JournalTrial& a, const JournalTrial& b) {
  const auto order = [](const JournalTrial& known) {
    const Trial& trial = known.trial;
    return std::tuple(status_rank(trial), trial.source, -trial.timing.num_samples,
                      trial.timing.median_us, known.elapsed_s, line(Json(trial)));
  };
  return order(a) < order(b);
}

using TrialKey = std::tuple<std::int64_t, Stage, int, std::string>;  // tokens, stage, round, plan

struct Merging {
  std::map<TrialKey, JournalTrial> trials;
  // Records of a stage and chosen entries, after the trials of their token count.
  std::map<std::int64_t, std::map<std::string, Json>> chosen;
  std::set<std::string> runs;
  std::size_t num_conflicts = 0;

  void add(const JournalTrial& known) {
    const Trial& trial = known.trial;
    const TrialKey key{trial.num_tokens, trial.stage, known.round, trial.plan.key()};
    const auto [found, is_new] = trials.try_emplace(key, known);
    if (is_new) return;
    num_conflicts += Json(found->second.trial) != Json(trial);
    if (is_better(known, found->second)) found->second = known;
  }

  void add(const Json& record) {
    const std::string kind = record.at("record");
    if (kind != "stage" && kind != "entry") {
      runs.insert(line(record));
      return;
    }
    // "stage" sorts after "entry": keys put the stages first, in their order.
    const std::string key = kind == "entry" ? "~entry" : record.at("stage").get<std::string>();
    const auto [found, is_new] =
        chosen[record.at("num_tokens").get<std::int64_t>()].try_emplace(key, record);
    if (is_new) return;
    const auto order = [&](const Json& json) {
      // Entries: as in tables. Stages: the more thorough search.
      const bool is_entry = kind == "entry";
      return std::tuple(
          is_entry ? parse_source(json.at("source").get<std::string>()) : Source{},
          is_entry ? json.at("median_us").get<double>() : -json.at("num_trials").get<double>(),
          line(json));
    };
    if (order(record) < order(found->second)) found->second = record;
  }
};

Json merged_header(std::span<const NamedJournal> journals) {
  Json header;
  for (const NamedJournal& journal : journals) {
    const Json& other = journal.contents.header;
    const auto age = [](const Json& json) {
      return std::pair(json.at("created").get<std::string>(), line(json));
    };
    if (header.is_null() || age(other) < age(header)) header = other;
  }
  return header;
}

}  // namespace

MergedJournal merge_journals(std::span<const NamedJournal> journals) {
  Merging merging;
  for (const NamedJournal& journal : journals) {
    check_same(journals.front(), journal);
    try {
      for (const JournalTrial& known : journal.contents.trials) merging.add(known);
      for (const Json& record : journal.contents.others) merging.add(record);
    } catch (const Json::exception& error) {
      throw Error(ErrorKind::input, fmt::format("{}: a record is not as this program writes it: {}",
                                                journal.path, error.what()));
    }
  }

  MergedJournal merged;
  merged.text = line(merged_header(journals));
  merged.num_trials = merging.trials.size();
  merged.num_conflicts = merging.num_conflicts;
  std::map<std::int64_t, std::vector<const JournalTrial*>> by_tokens;
  for (const auto& [key, known] : merging.trials) {
    by_tokens[known.trial.num_tokens].push_back(&known);
  }
  for (const auto& [num_tokens, records] : merging.chosen) by_tokens[num_tokens];
  for (auto& [num_tokens, trials] : by_tokens) {
    // Stable: what a search did at once stays in the order of the keys.
    std::stable_sort(trials.begin(), trials.end(),
                     [](const JournalTrial* a, const JournalTrial* b) {
                       return std::tuple(a->trial.stage, a->round, a->elapsed_s) <
                              std::tuple(b->trial.stage, b->round, b->elapsed_s);
                     });
    for (const JournalTrial* known : trials) merged.text += line(to_record(*known));
    const auto chosen = merging.chosen.find(num_tokens);
    if (chosen == merging.chosen.end()) continue;
    for (const auto& [key, record] : chosen->second) merged.text += line(record);
  }
  for (const std::string& run : merging.runs) merged.text += run;
  return merged;
}

}  // namespace moetune
