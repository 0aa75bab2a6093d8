// What multiplying in fp8 does to speed and to error: from a search with `--fp8 both`.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/trial.hpp"

namespace moetune {

struct Fp8Effect {
  Stage stage = Stage::layer;
  std::int64_t num_tokens = 0;
  std::optional<Trial> bf16;  // the fastest whose steps all have FP8=0
  std::optional<Trial> fp8;   // the fastest that has FP8=1 in some step
  double speedup() const;     // bf16 time / fp8 time; 0 unless both are known
};

// Every stage and token count that has a good time, ordered by stage, then token count. Plans
// without an FP8 parameter count as bf16.
std::vector<Fp8Effect> fp8_effects(std::span<const Trial> trials);

std::string fp8_text(std::span<const Fp8Effect> effects);
nlohmann::ordered_json fp8_json(std::span<const Fp8Effect> effects);

}  // namespace moetune
