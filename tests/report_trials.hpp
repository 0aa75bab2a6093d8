// Small trials for the report tests.
#pragma once

#include <string>
#include <utility>

#include "core/trial.hpp"

namespace moetune {

inline Point point(int m, int fp8 = 0) {
  return Point({{"BLOCK_SIZE_M", m}, {"FP8", fp8}});
}

inline Plan stage_plan(Stage stage, const Point& point) {
  return {{{std::string(to_string(stage)), "portable", point}}};
}

inline Trial timed(Stage stage, std::int64_t num_tokens, const Point& point, double median_us,
                   Source source = Source::measured, int num_samples = 20) {
  Trial trial;
  trial.stage = stage;
  trial.num_tokens = num_tokens;
  trial.plan = stage_plan(stage, point);
  trial.timing.median_us = median_us;
  trial.timing.num_samples = num_samples;
  trial.source = source;
  trial.rel_err = 0.003;
  return trial;
}

inline Trial bad(TrialStatus status, const Point& point, std::string rule, std::string reason) {
  Trial trial = timed(Stage::gemm1, 1, point, 0);
  trial.status = status;
  trial.rule = std::move(rule);
  trial.reason = std::move(reason);
  return trial;
}

// What speedups are measured against.
inline Plan reference() {
  return {{{"gemm1", "portable", point(64)}, {"gemm2", "portable", point(64)}}};
}

}  // namespace moetune
