#include "tune/session_records.hpp"

#include <map>
#include <string>

namespace moetune {

using Json = nlohmann::ordered_json;

Json journal_identity(const TableIdentity& identity, const Problem& problem,
                      const SearchSettings& settings) {
  const LayerShape& shape = identity.shape;
  Json variants = Json::array();
  for (const Variant* variant : settings.variants) variants.push_back(variant->name());
  Json json{{"gpu", identity.gpu},
            {"arch", identity.arch},
            {"driver", identity.driver},
            {"nvrtc", identity.nvrtc},
            {"kernels_hash", identity.kernels_hash},
            {"model", shape.model},
            {"num_experts", shape.num_experts},
            {"top_k", shape.top_k},
            {"hidden_size", shape.hidden_size},
            {"intermediate_size", shape.intermediate_size},
            {"dtype", to_string(identity.dtype)},
            {"routing", to_string(problem.routing)},
            {"seed", problem.seed},
            {"strategy", settings.strategy},
            {"num_random", settings.num_random},
            {"fp8", to_string(settings.fp8)},
            {"variants", variants}};
  if (settings.start) json["start"] = *settings.start;
  return json;
}

Json stage_record(const Proposals& proposals, std::span<const Trial> finals,
                  std::size_t num_trials) {
  Json rejected = Json::object();
  for (const auto& [rule, of_rule] : proposals.rejected()) rejected[rule] = of_rule.count;
  Json finalists = Json::array();
  for (const Trial& trial : finals) {
    finalists.push_back(Json{{"plan", trial.plan.key()}, {"median_us", trial.timing.median_us}});
  }
  return {{"record", "stage"},
          {"num_tokens", proposals.num_tokens()},
          {"stage", to_string(proposals.stage())},
          {"num_points", proposals.num_points()},
          {"rejected", rejected},
          {"num_trials", num_trials},
          {"finalists", finalists}};
}

Json entry_record(std::int64_t num_tokens, const TableEntry& entry, const Interval& interval) {
  return {{"record", "entry"},
          {"num_tokens", num_tokens},
          {"plan", entry.plan},
          {"median_us", entry.timing.median_us},
          {"ci95_us", {interval.low_us, interval.high_us}},
          {"reference_us", entry.reference_us},
          {"tie", entry.tie},
          {"source", to_string(entry.source)}};
}

Json run_record(const SearchResult& result) {
  std::map<std::string, std::uint64_t> statuses, rejected;
  for (const auto& [rule, of_rule] : result.rejected) rejected[rule] += of_rule.count;
  for (const Trial& trial : result.trials) {
    ++statuses[std::string(to_string(trial.status))];
    if (trial.status == TrialStatus::rejected) ++rejected[trial.rule];
  }
  const auto num_measured = static_cast<double>(result.trials.size() - result.num_resumed);
  return {{"record", "run"},
          {"interrupted", result.interrupted},
          {"wall_s", result.wall_s},
          {"busy_s", result.busy_s},
          {"num_trials", result.trials.size()},
          {"num_resumed", result.num_resumed},
          {"trials_per_s", result.wall_s > 0 ? num_measured / result.wall_s : 0},
          {"status", statuses},
          {"rejected", rejected}};
}

}  // namespace moetune
