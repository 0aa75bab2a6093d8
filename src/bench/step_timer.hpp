// What a server's step takes: the layer launched on the GPU for as many tokens, by the plan for
// them.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>

#include "lab/loaded_plan.hpp"

namespace moetune {

struct CountPlan {
  std::int64_t num_tokens = 0;
  Plan plan;
};

struct StepTimerOptions {
  int num_layers = 32;  // that a step runs through
  // Layer calls that a step launches, each with a routing of its own; what they take is scaled to
  // num_layers.
  int num_launched = 8;
  // Measure each padded count once, and take that for every step; else every step is launched.
  bool reuse = false;
};

// Keeps a CUDA graph for every padded token count that was asked for. Make all timers of a layer
// before the first step: a timer grows the layer's workspace, which moves it.
class StepTimer {
 public:
  // `batch` has at least as many tokens as the largest plan and num_launched routings; smaller
  // steps take the first of its tokens. `plans` in order of token counts. Every distinct plan is
  // first compared with the reference. Throws Error(failed) for one that does not run or is wrong.
  StepTimer(const Gpu& gpu, Layer& layer, TokenBatch& batch, std::span<const CountPlan> plans,
            Compiler& compiler, const StepTimerOptions& options);

  // Seconds of a step, padded to the next count there is a plan for.
  double step_s(std::int64_t num_tokens);
  std::int64_t num_launches() const { return num_launches_; }

 private:
  struct Entry {
    std::shared_ptr<LoadedPlan> plan;
    std::unique_ptr<Graph> graph;  // made when first needed
    double measured_s = 0;         // with `reuse`, once it was
  };
  double launch_s(const Entry& entry);

  Layer& layer_;
  TokenBatch& batch_;
  StepTimerOptions options_;
  std::map<std::int64_t, Entry> entries_;
  Event begin_, end_;
  std::int64_t num_launches_ = 0;
};

}  // namespace moetune
