// Runs the optimisation journey on a GPU: every level checked against the reference, then timed.
#pragma once

#include <memory>
#include <string>

#include "bench/levels.hpp"
#include "report/journey_report.hpp"

namespace moetune {

struct JourneyOptions {
  std::string cache_dir;
  double memory_limit_bytes = 8e9;  // that levels 1 and 2 gather weights within
  // What timing a level that is not captured into a graph may take: it gets 20 samples of 8 calls,
  // fewer, or single calls, so as to stay within this; at least one.
  double budget_s = 10;
};

class Journey {
 public:
  // Makes the layer's weights. `problem` is bf16 at the largest token count that will be asked
  // for. Throws Error(device) saying how much memory is missing.
  Journey(const Gpu& gpu, const Problem& problem, const JourneyOptions& options);

  // All seven levels at row.problem.num_tokens; row.plan is level 6's. Fills row.levels. `defect`:
  // why that plan cannot be run, "" when it can. A level that fails is data; throws Error(device)
  // when the GPU is lost.
  void run(JourneyRow& row, const std::string& defect);

 private:
  void measure(int number, const JourneyRow& row, const std::string& defect, TokenBatch& batch,
               JourneyLevel& level);

  Gpu gpu_;
  Problem problem_;
  JourneyOptions options_;
  Compiler compiler_;
  std::unique_ptr<Layer> layer_;
  std::unique_ptr<Levels> levels_;
};

}  // namespace moetune
