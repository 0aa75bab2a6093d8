#include "tune/session_records.hpp"

#include <fmt/format.h>

#include <map>
#include <set>
#include <string>
#include <string_view>

#include "report/progress.hpp"

namespace moetune {

using Json = nlohmann::ordered_json;

namespace {

// Over the thorough trials that a GPU measured.
struct ClockCheck {
  int num_measured = 0;
  int num_checked = 0;
  int num_unsteady = 0;
  std::int64_t num_samples = 0;
  std::int64_t num_discarded = 0;
};

ClockCheck clock_check(const SearchResult& result) {
  ClockCheck check;
  for (const Trial& trial : result.trials) {
    const Timing& timing = trial.timing;
    if (trial.source != Source::measured || timing.num_samples < kRoundSamples) continue;
    ++check.num_measured;
    check.num_checked += timing.clock_mhz > 0;
    check.num_unsteady += timing.unsteady;
    check.num_samples += timing.num_samples;
    check.num_discarded += timing.num_discarded;
  }
  return check;
}

// Of the variants that a search looks at and of the reference point's: no other decides its times.
std::map<std::string, std::string> searched_hashes(const KernelHashes& kernels,
                                                   const SearchSettings& settings) {
  std::set<std::string_view> names{kReferenceVariant};
  for (const Variant* variant : settings.variants) names.insert(variant->name());
  std::map<std::string, std::string> hashes;
  for (const auto& [name, hash] : kernels.variants)
    if (names.contains(name)) hashes.emplace(name, hash);
  return hashes;
}

}  // namespace

Json journal_identity(const TableIdentity& identity, const Problem& problem,
                      const SearchSettings& settings) {
  const LayerShape& shape = identity.shape;
  Json variants = Json::array();
  for (const Variant* variant : settings.variants) variants.push_back(variant->name());
  Json json{{"gpu", identity.gpu},
            {"arch", identity.arch},
            {"driver", identity.driver},
            {"nvrtc", identity.nvrtc},
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
            {"variants", variants},
            {"variant_hashes", searched_hashes(identity.kernels, settings)},
            {"small_kernels", identity.kernels.small_kernels}};
  if (settings.objective != Objective::time) json["objective"] = to_string(settings.objective);
  if (settings.deterministic) json["deterministic"] = true;
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

Json entry_record(std::int64_t num_tokens, const TableEntry& entry, const TimeInterval& interval) {
  return {{"record", "entry"},
          {"num_tokens", num_tokens},
          {"plan", entry.plan},
          {"median_us", entry.timing.median_us},
          {"ci95_us", {interval.low_us, interval.high_us}},
          {"reference_us", entry.reference_us},
          {"tie", !entry.ties.empty()},
          {"source", to_string(entry.source)}};
}

Json run_figures(const SearchResult& result) {
  const Usage& usage = result.usage;
  const ClockCheck check = clock_check(result);
  return {{"wall_s", result.wall_s},
          {"busy_s", usage.busy_s},
          {"busy_share", result.wall_s > 0 ? usage.busy_s / result.wall_s : 0},
          {"compile_s", usage.compile_s},
          {"peak_host_bytes", usage.peak_host_bytes},
          {"clock_check", check.num_measured > 0 ? Json(check.num_checked > 0) : Json(nullptr)},
          {"num_discarded", check.num_discarded},
          {"num_unsteady", check.num_unsteady}};
}

std::string run_text(const SearchResult& result, bool offline) {
  const Usage& usage = result.usage;
  std::string text = fmt::format("{} in this run, {} trials from the journal",
                                 duration_text(result.wall_s), result.num_resumed);
  if (!offline && result.wall_s > 0) {
    text += fmt::format("; GPU busy {} ({:.0f} %)", duration_text(usage.busy_s),
                        100 * usage.busy_s / result.wall_s);
  }
  text +=
      fmt::format("\n{} of compilation over all threads, peak host memory {:.2f} GB",
                  duration_text(usage.compile_s), static_cast<double>(usage.peak_host_bytes) / 1e9);
  const ClockCheck check = clock_check(result);
  if (check.num_checked > 0) {
    text += fmt::format("; {} of {} samples discarded by the clock", check.num_discarded,
                        check.num_discarded + check.num_samples);
    if (check.num_unsteady > 0) {
      text += fmt::format(", {} trials with an unsteady one", check.num_unsteady);
    }
  } else if (check.num_measured > 0) {
    text += "; no clock check: NVML does not answer";
  }
  return text + "\n";
}

Json run_record(const SearchResult& result) {
  std::map<std::string, std::uint64_t> statuses, rejected;
  for (const auto& [rule, of_rule] : result.rejected) rejected[rule] += of_rule.count;
  for (const Trial& trial : result.trials) {
    ++statuses[std::string(to_string(trial.status))];
    if (trial.status == TrialStatus::rejected) ++rejected[trial.rule];
  }
  const auto num_measured = static_cast<double>(result.trials.size() - result.num_resumed);
  Json record{{"record", "run"}, {"interrupted", result.interrupted}};
  record.update(run_figures(result));
  record.update(Json{{"num_trials", result.trials.size()},
                     {"num_resumed", result.num_resumed},
                     {"trials_per_s", result.wall_s > 0 ? num_measured / result.wall_s : 0},
                     {"status", statuses},
                     {"rejected", rejected}});
  return record;
}

}  // namespace moetune
