#include "tune/records.hpp"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <vector>

#include "core/error.hpp"
#include "tune/journal.hpp"

namespace moetune {
namespace {

using Json = nlohmann::ordered_json;

// Whether a journal's identity is of this GPU and layer. Names of models and seeds change no time.
bool fits(const Json& identity, const Gpu& gpu, const Problem& problem) {
  const LayerShape& shape = problem.shape;
  const Json wanted{{"gpu", gpu.name},
                    {"num_experts", shape.num_experts},
                    {"top_k", shape.top_k},
                    {"hidden_size", shape.hidden_size},
                    {"intermediate_size", shape.intermediate_size},
                    {"dtype", to_string(problem.dtype)},
                    {"routing", to_string(problem.routing)}};
  return std::all_of(wanted.items().begin(), wanted.items().end(), [&](const auto& item) {
    return identity.contains(item.key()) && identity.at(item.key()) == item.value();
  });
}

}  // namespace

Records::Records(const std::string& dir, const Gpu& gpu, const Problem& problem) {
  namespace fs = std::filesystem;
  std::error_code ignored;
  std::vector<std::string> paths;
  for (const auto& entry : fs::recursive_directory_iterator(
           fs::path(dir) / file_name(gpu), fs::directory_options::skip_permission_denied, ignored))
    if (entry.path().extension() == ".jsonl") paths.push_back(entry.path().string());
  std::sort(paths.begin(), paths.end());
  for (const std::string& path : paths) read(path, gpu, problem);
}

void Records::read(const std::string& path, const Gpu& gpu, const Problem& problem) {
  try {
    JournalContents journal = read_journal(path);
    if (!journal.header.is_object() || !fits(journal.header.at("identity"), gpu, problem)) return;
    for (const std::string& warning : journal.warnings) spdlog::warn("{}", warning);
    // Looks that were stopped early first, and later rounds last: the last one stays.
    const auto care = [](const JournalTrial& known) {
      return std::pair(!known.trial.screened_out, known.round);
    };
    std::stable_sort(journal.trials.begin(), journal.trials.end(),
                     [&](const auto& a, const auto& b) { return care(a) < care(b); });
    for (JournalTrial& known : journal.trials) {
      Trial& trial = known.trial;
      if (trial.status != TrialStatus::ok || trial.source != Source::measured) continue;
      auto& plans = trials_[{trial.stage, trial.num_tokens}];
      const auto [old, is_new] = plans.try_emplace(trial.plan.key(), trial);
      if (!is_new && trial.screened_out <= old->second.screened_out) old->second = std::move(trial);
    }
  } catch (const Error& error) {
    spdlog::warn("records: skipped: {}", error.what());
  }
}

const std::map<std::string, Trial>& Records::at(Stage stage, std::int64_t num_tokens) const {
  static const std::map<std::string, Trial> kNone;
  const auto found = trials_.find({stage, num_tokens});
  return found == trials_.end() ? kNone : found->second;
}

const Trial* Records::find(Stage stage, std::int64_t num_tokens, const Plan& plan) const {
  const auto& plans = at(stage, num_tokens);
  const auto found = plans.find(plan.key());
  return found == plans.end() ? nullptr : &found->second;
}

}  // namespace moetune
