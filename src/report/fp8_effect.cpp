#include "report/fp8_effect.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>
#include <tuple>

#include "report/summary.hpp"
#include "report/text_table.hpp"

namespace moetune {
namespace {

bool uses_fp8(const Plan& plan) {
  return std::ranges::any_of(plan.steps,
                             [](const Step& step) { return step.point.value_or("FP8", 0) == 1; });
}

std::string time_of(const std::optional<Trial>& trial) {
  return trial ? time_text(trial->timing.median_us, trial->source) : "-";
}
std::string error_of(const std::optional<Trial>& trial) {
  return trial ? fmt::format("{:.5f}", trial->rel_err) : "-";
}

nlohmann::ordered_json side_json(const std::optional<Trial>& trial) {
  if (!trial) return nullptr;
  return {{"plan", trial->plan},
          {"time_us", trial->timing.median_us},
          {"rel_err", trial->rel_err},
          {"quantisation_err", positive_or_null(trial->quantisation_err)},
          {"source", to_string(trial->source)}};
}

}  // namespace

double Fp8Effect::speedup() const {
  return bf16 && fp8 ? bf16->timing.median_us / fp8->timing.median_us : 0;
}

std::vector<Fp8Effect> fp8_effects(std::span<const Trial> trials) {
  struct Found {
    const Trial* bf16 = nullptr;
    const Trial* fp8 = nullptr;
  };
  std::map<std::pair<Stage, std::int64_t>, Found> groups;
  for (const Trial& trial : trials) {
    if (!has_good_time(trial)) continue;
    Found& found = groups[{trial.stage, trial.num_tokens}];
    const Trial*& side = uses_fp8(trial.plan) ? found.fp8 : found.bf16;
    side = better(side, trial);
  }
  std::vector<Fp8Effect> effects;
  for (const auto& [group, found] : groups) {
    Fp8Effect& effect = effects.emplace_back();
    std::tie(effect.stage, effect.num_tokens) = group;
    if (found.bf16 != nullptr) effect.bf16 = *found.bf16;
    if (found.fp8 != nullptr) effect.fp8 = *found.fp8;
  }
  return effects;
}

std::string fp8_text(std::span<const Fp8Effect> effects) {
  TextTable table({"<stage", "tokens", "bf16 us", "fp8 us", "speedup", "bf16 rel_err",
                   "fp8 rel_err", "fp8 against bf16"});
  std::set<Source> sources;
  for (const Fp8Effect& effect : effects) {
    table.add({std::string(to_string(effect.stage)), fmt::format("{}", effect.num_tokens),
               time_of(effect.bf16), time_of(effect.fp8), speedup_text(effect.speedup()),
               error_of(effect.bf16), error_of(effect.fp8),
               effect.fp8 && effect.fp8->quantisation_err > 0
                   ? fmt::format("{:.5f}", effect.fp8->quantisation_err)
                   : "-"});
    for (const auto* side : {&effect.bf16, &effect.fp8}) {
      if (*side) sources.insert((*side)->source);
    }
  }
  return "effect of FP8: the fastest bf16 plan against the fastest with FP8=1\n"
         "rel_err: against the reference on the same inputs, quantised for fp8; "
         "fp8 against bf16: what quantising itself costs\n" +
         table.text() + source_footnote(sources);
}

nlohmann::ordered_json fp8_json(std::span<const Fp8Effect> effects) {
  auto json = nlohmann::ordered_json::array();
  for (const Fp8Effect& effect : effects) {
    json.push_back({{"stage", to_string(effect.stage)},
                    {"num_tokens", effect.num_tokens},
                    {"bf16", side_json(effect.bf16)},
                    {"fp8", side_json(effect.fp8)},
                    {"speedup", positive_or_null(effect.speedup())}});
  }
  return json;
}

}  // namespace moetune
