// A journal of a full grid that nobody measured: times follow the portable variant's own model, off
// by what a model does not know: how well the compiler does with a tile, how latency is hidden, and
// noise. Neighbouring token counts agree on that, as they do on a GPU.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <string>
#include <vector>

#include "core/text.hpp"
#include "kernels/variant.hpp"
#include "search/legal_points.hpp"
#include "tune/journal.hpp"

namespace moetune::synthetic {

// Uniform in [-1, 1), from a text.
inline double whim(const std::string& text) {
  const std::string hex = hash_hex(text).substr(0, 12);
  return 2 * static_cast<double>(std::stoull(hex, nullptr, 16)) / 0x1p48 - 1;
}

inline double time_us(const Gpu& gpu, const Problem& problem, Stage stage, const Point& point) {
  const auto at = [&](const char* name) { return point.at(name); };
  const double predicted = find_variant("portable").predict_us(gpu, problem, stage, point);
  const double accumulators =
      std::log2(at("BLOCK_SIZE_M") * at("BLOCK_SIZE_N") / 32.0 / at("NUM_WARPS"));
  double log_time = std::log(predicted);
  // What the model leaves out, smooth: registers of a tile, depth against the bytes of a stage.
  log_time += 0.02 * std::pow(accumulators - 5.3, 2);
  const double depth =
      std::log2(at("NUM_STAGES") * at("BLOCK_SIZE_K") * at("BLOCK_SIZE_N") / 128.0);
  log_time += 0.012 * std::pow(depth - 9.4, 2);
  log_time += 0.03 * whim(fmt::format("split {} {}", at("SPLIT_K"), to_string(stage)));
  // And not smooth: a tile's program, and each program's own luck.
  const std::string tile = fmt::format("{} {} {} {}", at("BLOCK_SIZE_M"), at("BLOCK_SIZE_N"),
                                       at("NUM_WARPS"), to_string(problem.dtype));
  log_time += 0.08 * whim(tile);
  log_time += 0.04 * whim(tile + fmt::format(" {}", at("BLOCK_SIZE_K")));
  log_time += 0.015 * whim(point.key());
  // Differs by token count: how waves and row tiles really fall, the more the more rows, and noise.
  const double rows = static_cast<double>(problem.num_tokens * problem.shape.top_k) /
                      expected_active_experts(problem.shape, problem.num_tokens);
  const double unlike = rows > 8 ? 0.06 : 0.01;
  log_time += unlike * whim(fmt::format("{} {} {} {}", at("BLOCK_SIZE_M"), at("BLOCK_SIZE_N"),
                                        problem.num_tokens, to_string(stage)));
  log_time += unlike / 2 * whim(fmt::format("{} {}", tile, problem.num_tokens));
  log_time +=
      0.006 * whim(fmt::format("{} {} {}", point.key(), problem.num_tokens, to_string(stage)));
  return std::exp(log_time);
}

// The journal of every legal point; a point in 64 fails.
inline void write_journal(const std::string& path, const Gpu& gpu, Problem problem,
                          const std::vector<std::int64_t>& token_counts) {
  using Json = nlohmann::ordered_json;
  const LayerShape& shape = problem.shape;
  std::ofstream file(path);
  file << Json{{"record", "header"},
               {"version", kJournalVersion},
               {"identity",
                {{"gpu", gpu.name},
                 {"model", shape.model},
                 {"num_experts", shape.num_experts},
                 {"top_k", shape.top_k},
                 {"hidden_size", shape.hidden_size},
                 {"intermediate_size", shape.intermediate_size},
                 {"dtype", to_string(problem.dtype)},
                 {"routing", to_string(problem.routing)}}}}
              .dump()
       << "\n";
  for (const std::int64_t num_tokens : token_counts) {
    problem.num_tokens = num_tokens;
    for (const Stage stage : {Stage::gemm1, Stage::gemm2}) {
      const SearchSpace space =
          find_variant("portable").space(gpu, problem, stage, default_fp8_mode(problem.dtype));
      for (const Point& point : enumerate(space).points) {
        Trial trial;
        trial.stage = stage;
        trial.num_tokens = num_tokens;
        trial.plan = Plan{{{std::string(to_string(stage)), "portable", point}}};
        const double median_us = time_us(gpu, problem, stage, point);
        trial.timing = {median_us, median_us * 0.998, median_us * 1.003, 3, 0};
        if (whim("spills " + point.key()) > 31.0 / 32) {
          trial.status = TrialStatus::rejected;
          trial.rule = "spill";
        }
        Json record{{"record", "trial"}, {"round", 0}, {"elapsed_s", 1}};
        record.update(Json(trial));
        file << record.dump() << "\n";
      }
    }
  }
}

}  // namespace moetune::synthetic
