// What each parameter does to the time: from an ablation's trials.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "core/point.hpp"
#include "core/trial.hpp"

namespace moetune {

struct ValueEffect {
  int value = 0;
  bool is_start = false;
  bool legal = true;          // false: `note` is the rule that the space rejects it by
  double time_us = 0;         // 0 when it has no good time
  double effect_percent = 0;  // time against the start point's: +10 is 10 % slower
  Source source = Source::measured;
  std::string note;  // why there is no time, or "brief look"
};

struct ParameterEffect {
  std::string name;
  std::vector<ValueEffect> values;  // in the space's order
  double range_percent = 0;         // largest minus smallest effect, the start's 0 included
};

struct Sensitivity {
  Stage stage = Stage::gemm1;
  std::int64_t num_tokens = 0;
  Step start;
  double start_us = 0;  // 0: the start point has no good time and no effect is known
  Source start_source = Source::measured;
  std::vector<ParameterEffect> parameters;  // in the space's order
};

// From the trials of `stage` at `num_tokens` that differ from `start` in at most one parameter.
// `start` is the first point that the ablation strategy proposed.
Sensitivity sensitivity(std::span<const Trial> trials, Stage stage, std::int64_t num_tokens,
                        const SearchSpace& space, const Step& start);

std::string sensitivity_text(const Sensitivity& sensitivity);
nlohmann::ordered_json sensitivity_json(const Sensitivity& sensitivity);

}  // namespace moetune
