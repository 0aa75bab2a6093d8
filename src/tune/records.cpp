#include "tune/records.hpp"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <vector>

#include "core/error.hpp"
#include "core/kernel_hashes.hpp"
#include "jit/compiler.hpp"
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

// What a journal does not tell as it should is not known.
KernelHashes hashes_in(const Json& identity) {
  KernelHashes hashes;
  const Json variants = identity.value("variant_hashes", Json::object());
  for (const auto& [name, hash] : variants.items())
    if (hash.is_string()) hashes.variants[name] = hash.get<std::string>();
  return hashes;
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
    const KernelHashes here = kernel_hashes();
    const KernelHashes theirs = hashes_in(journal.header.at("identity"));
    for (const auto& [trial, round, elapsed_s] : journal.trials) {
      if (trial.status != TrialStatus::ok || trial.source != Source::measured) continue;
      const bool is_current = changed_variants(variants_of(trial.plan), theirs, here).empty();
      const Record record{{is_current, !trial.screened_out, round}, trial};
      Record& known = records_[{trial.stage, trial.num_tokens}][trial.plan.key()];
      if (record.care >= known.care) known = record;
    }
  } catch (const Error& error) {
    spdlog::warn("records: skipped: {}", error.what());
  }
}

const std::map<std::string, Record>& Records::at(Stage stage, std::int64_t num_tokens) const {
  static const std::map<std::string, Record> kNone;
  const auto found = records_.find({stage, num_tokens});
  return found == records_.end() ? kNone : found->second;
}

const Trial* Records::find(Stage stage, std::int64_t num_tokens, const Plan& plan) const {
  const auto& plans = at(stage, num_tokens);
  const auto found = plans.find(plan.key());
  return found == plans.end() ? nullptr : &found->second.trial;
}

}  // namespace moetune
