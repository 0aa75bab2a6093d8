// A layer of libmoetune: plans chosen, compiled and run for any number of tokens.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <shared_mutex>
#include <span>
#include <string>
#include <tuple>
#include <vector>

#include "core/error.hpp"
#include "runtime/counter_pool.hpp"
#include "runtime/executor.hpp"
#include "runtime/plan_choice.hpp"

namespace moetune {

// What layers of one device and one kernel cache share: compiler, loaded kernels, counters.
struct DeviceContext {
  DeviceContext(const Gpu& of, const std::string& cache_dir, int num_threads);
  Gpu gpu;
  Compiler compiler;
  KernelLoader kernels;
  CounterPool counters;
};
// The same for the same device and folder while anyone holds it. Throws Error(device).
std::shared_ptr<DeviceContext> device_context(int ordinal, const std::string& cache_dir,
                                              int num_threads);

// A call's tensors, workspace and stream. Addresses of device memory.
struct LayerCallArguments {
  CallLayout layout;  // pitches of w13 and w2 are the layer's
  std::int64_t num_tokens = 0;
  const void* x = nullptr;
  const void* w13 = nullptr;
  const void* w13_scale = nullptr;
  const void* w2 = nullptr;
  const void* w2_scale = nullptr;
  const void* topk_ids = nullptr;
  const void* topk_weights = nullptr;
  const void* expert_map = nullptr;
  void* out = nullptr;
  void* workspace = nullptr;
  std::size_t workspace_bytes = 0;
};

class NotPrepared : public Error {
 public:
  using Error::Error;
};

// All members may be called from several threads, but while the device of the layer is current.
class TunedLayer {
 public:
  // `layout`: of the weights alone. Throws Error(input) for a shape that nothing here can run.
  TunedLayer(std::shared_ptr<DeviceContext> device, const Problem& problem,
             const CallLayout& layout, const std::vector<std::string>& table_paths);

  const Problem& problem() const { return problem_; }
  const Gpu& gpu() const { return device_->gpu; }
  // Compiles and loads what these token counts need; empty: what any count needs. Throws
  // Error(failed) with each plan's reason where none of a count's compiles.
  void prepare(std::span<const std::int64_t> token_counts);
  // For calls of up to this many tokens, whatever their layout.
  std::size_t workspace_bytes(std::int64_t max_tokens) const;
  // Enqueues a call. Throws NotPrepared, Error(input) for a workspace that is too small, and
  // Error(device).
  void run(const LayerCallArguments& call, cudaStream_t stream);
  ChoiceReport explain(std::int64_t num_tokens) const;

 private:
  struct CallKey {
    std::int64_t num_tokens;
    CallLayout layout;
    bool operator<(const CallKey& other) const {
      return std::tie(num_tokens, layout) < std::tie(other.num_tokens, other.layout);
    }
  };
  // A call that is ready to run.
  struct Ready {
    Executor executor;
    WorkspaceLayout layout;
    std::vector<TensorId> counters;
  };

  Problem at(std::int64_t num_tokens) const;
  // A count's choices without steps that are known not to compile or fit.
  std::vector<PlanChoice> choices(std::int64_t num_tokens, std::vector<std::string>& notes) const;
  std::optional<PlanChoice> resolve(std::int64_t num_tokens, std::vector<std::string>& notes) const;
  // False where a step cannot run here, which is then in unfit_.
  bool load(const Problem& problem, const Plan& plan);
  std::shared_ptr<const Ready> find(const CallKey& key);
  LayerProgram program(const CallKey& key, const Plan& plan) const;
  // Counts at which a call of up to `max_tokens` may need the most memory.
  std::set<std::int64_t> largest_calls(std::int64_t max_tokens) const;

  std::shared_ptr<DeviceContext> device_;
  Problem problem_;
  CallLayout weights_layout_;
  PlanChooser chooser_;
  mutable std::mutex plans_mutex_;            // guards the next two
  std::set<std::string> loaded_;              // keys of plans that are ready
  std::map<std::string, std::string> unfit_;  // steps that are not: why
  std::shared_mutex calls_mutex_;             // guards calls_
  std::map<CallKey, std::shared_ptr<const Ready>> calls_;
};

}  // namespace moetune
