// What a journal says of whole spaces: for each stage and token count every point that was looked
// at, and how long it took. Strategies can be run on it without a GPU.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/trial.hpp"
#include "search/coordinates.hpp"

namespace moetune {

// The points of one variant, stage and token count. A point that is not here does not exist.
struct RecordedSpace {
  std::string variant;
  SearchSpace space;  // every value that the stage's record holds anywhere; one rule: recorded
  std::vector<Point> points;
  std::vector<Trial> looks;          // [points]
  std::vector<double> predicted_us;  // [points], 1 where the model does not know the kernel
};

struct RecordedEntry {
  Stage stage = Stage::gemm1;
  std::int64_t num_tokens = 0;
  std::vector<RecordedSpace> spaces;
  std::vector<Coordinates> coordinates;  // [spaces]
  Step reference;                        // the point that speedups are measured against
  double best_us = 0;                    // of the fastest look
  std::uint64_t num_points() const;
};

struct Recording {
  std::string path;
  nlohmann::ordered_json identity;     // the journal's
  std::vector<RecordedEntry> entries;  // by stage, then token count
  std::vector<std::string> warnings;   // bad lines, an unknown GPU or kernel
};

// The first looks of a journal (PATH or PATH.gz). Stages without a good time are left out. Throws
// Error(input) for what is no journal or holds no look.
Recording read_recording(const std::string& path);

}  // namespace moetune
