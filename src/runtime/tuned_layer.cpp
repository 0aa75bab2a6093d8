#include "runtime/tuned_layer.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "core/embedded.hpp"
#include "jit/static_check.hpp"
#include "kernels/support/support.hpp"

namespace moetune {
namespace {

constexpr std::size_t kMaxCalls = 8192;  // kept ready; token counts vary without end
constexpr std::int64_t kFewTokens = 64;  // up to here every count is looked at

std::int64_t counters_bytes(const LayerProgram& program) {
  return std::count_if(program.tensors.begin(), program.tensors.end(),
                       [](const TensorSpec& spec) { return spec.role == Role::counter; }) *
         kTensorAlignment;
}

std::string step_key(const Step& step) {
  return fmt::format("{} {} {}", step.op, step.variant, step.point.key());
}

Gpu gpu_of(int ordinal) {
  for (const Gpu& gpu : list_gpus())
    if (gpu.ordinal == ordinal) return gpu;
  throw Error(ErrorKind::device, fmt::format("no usable GPU {}: {}", ordinal, why_no_gpu()));
}

}  // namespace

DeviceContext::DeviceContext(const Gpu& of, const std::string& cache_dir, int num_threads)
    : gpu(of), compiler(arch_name(of), cache_dir, num_threads), kernels(compiler) {}

std::shared_ptr<DeviceContext> device_context(int ordinal, const std::string& cache_dir,
                                              int num_threads) {
  static std::mutex mutex;
  static std::map<std::pair<int, std::string>, std::weak_ptr<DeviceContext>> contexts;
  const std::scoped_lock lock(mutex);
  std::weak_ptr<DeviceContext>& known = contexts[{ordinal, cache_dir}];
  std::shared_ptr<DeviceContext> context = known.lock();
  if (!context) {
    context = std::make_shared<DeviceContext>(gpu_of(ordinal), cache_dir, num_threads);
    known = context;
  }
  return context;
}

TunedLayer::TunedLayer(std::shared_ptr<DeviceContext> device, const Problem& problem,
                       const CallLayout& layout, const std::vector<std::string>& table_paths)
    : device_(std::move(device)),
      problem_(problem),
      weights_layout_(layout),
      chooser_(device_->gpu, problem, layout, table_paths) {
  const auto& all = variants();
  if (std::none_of(all.begin(), all.end(), [&](const auto& variant) {
        return variant->supports(device_->gpu, problem.dtype);
      })) {
    throw Error(ErrorKind::input, fmt::format("no kernel runs {} on {}; use bf16 weights",
                                              to_string(problem.dtype), device_->gpu.name));
  }
}

Problem TunedLayer::at(std::int64_t num_tokens) const {
  Problem problem = problem_;
  problem.num_tokens = num_tokens;
  return problem;
}

std::vector<PlanChoice> TunedLayer::choices(std::int64_t num_tokens,
                                            std::vector<std::string>& notes) const {
  std::map<std::string, std::string> unfit;
  {
    const std::scoped_lock lock(plans_mutex_);
    unfit = unfit_;
  }
  auto found = chooser_.choose(num_tokens, notes,
                               [&](const Step& step) { return unfit.contains(step_key(step)); });
  for (const auto& [step, why] : unfit) notes.push_back(fmt::format("{}: {}", step, why));
  return found;
}

std::optional<PlanChoice> TunedLayer::resolve(std::int64_t num_tokens,
                                              std::vector<std::string>& notes) const {
  std::vector<PlanChoice> found = choices(num_tokens, notes);
  if (found.empty()) return std::nullopt;
  return std::move(found.front());
}

bool TunedLayer::load(const Problem& problem, const Plan& plan) {
  for (const Step& step : plan.steps) {
    Trial trial;
    if (check_static(device_->gpu, problem, step, device_->compiler, trial)) continue;
    const std::scoped_lock lock(plans_mutex_);
    unfit_.emplace(step_key(step), fmt::format("{}: {}", to_string(trial.status), trial.reason));
    return false;
  }
  // Loads the kernels, the small ones too.
  const Executor executor(build(device_->gpu, problem, plan, Stage::layer), device_->kernels);
  const std::scoped_lock lock(plans_mutex_);
  loaded_.insert(plan.key());
  return true;
}

void TunedLayer::prepare(std::span<const std::int64_t> token_counts) {
  std::set<std::int64_t> counts(token_counts.begin(), token_counts.end());
  if (counts.empty()) counts.insert(chooser_.keys().begin(), chooser_.keys().end());
  if (*counts.begin() < 0)
    throw Error(ErrorKind::input, fmt::format("{} tokens are no token count", *counts.begin()));
  counts.erase(0);
  // Everything that is likely to be needed is compiled at once, on all threads. A table's entries
  // were compiled before; of the model's plans some do not compile.
  device_->compiler.submit(small_kernels(problem_));
  std::vector<std::string> notes;
  for (const std::int64_t count : counts) {
    for (const PlanChoice& choice : choices(count, notes)) {
      for (const Step& step : choice.plan.steps)
        device_->compiler.submit(source_of(device_->gpu, at(count), step));
      if (choice.step != ChoiceStep::model) break;
    }
  }
  const auto is_loaded = [&](const Plan& plan) {
    const std::scoped_lock lock(plans_mutex_);
    return loaded_.contains(plan.key());
  };
  for (const std::int64_t count : counts) {
    for (;;) {
      const auto choice = resolve(count, notes);
      if (!choice) {
        throw Error(ErrorKind::failed,
                    fmt::format("no plan for {} tokens can run here{}{}", count,
                                notes.empty() ? "" : ": ", fmt::join(notes, "; ")));
      }
      if (is_loaded(choice->plan) || load(at(count), choice->plan)) break;
    }
  }
}

LayerProgram TunedLayer::program(const CallKey& key, const Plan& plan) const {
  return build(device_->gpu, at(key.num_tokens), plan, Stage::layer, key.layout);
}

std::set<std::int64_t> TunedLayer::largest_calls(std::int64_t max_tokens) const {
  std::set<std::int64_t> counts;
  for (std::int64_t t = 1; t <= std::min(max_tokens, kFewTokens); ++t) counts.insert(t);
  counts.insert(max_tokens);
  // A plan's memory grows with its tokens: the last count before the next key takes over counts.
  const std::vector<std::int64_t>& keys = chooser_.keys();
  for (std::size_t i = 0; i + 1 < keys.size(); ++i) {
    std::int64_t low = keys[i];
    std::int64_t high = keys[i + 1];
    while (high - low > 1) {
      const std::int64_t middle = low + (high - low) / 2;
      (nearest_keys(keys, middle).front() <= keys[i] ? low : high) = middle;
    }
    for (const std::int64_t count : {low, keys[i + 1]})
      if (count <= max_tokens) counts.insert(count);
  }
  return counts;
}

std::size_t TunedLayer::workspace_bytes(std::int64_t max_tokens) const {
  CallLayout layout = weights_layout_;
  layout.x_pitch = problem_.shape.hidden_size + 8;
  layout.out_pitch = layout.x_pitch;
  layout.int64_ids = true;
  layout.bf16_topk_weights = true;
  std::int64_t most = 0;
  for (const std::int64_t count : largest_calls(max_tokens)) {
    std::vector<std::string> notes;
    const auto choice = resolve(count, notes);
    if (!choice) continue;  // nothing runs then
    const LayerProgram of = program({count, layout}, choice->plan);
    most = std::max(most, moetune::workspace_bytes(of) + counters_bytes(of));
  }
  return static_cast<std::size_t>(most);
}

std::shared_ptr<const TunedLayer::Ready> TunedLayer::find(const CallKey& key) {
  {
    const std::shared_lock lock(calls_mutex_);
    if (const auto found = calls_.find(key); found != calls_.end()) return found->second;
  }
  std::vector<std::string> notes;
  const auto choice = resolve(key.num_tokens, notes);
  bool is_loaded = false;
  if (choice) {
    const std::scoped_lock lock(plans_mutex_);
    is_loaded = loaded_.contains(choice->plan.key());
  }
  if (!is_loaded) {
    throw NotPrepared(ErrorKind::failed,
                      fmt::format("no kernels are loaded for {} tokens; call moetune_prepare() for "
                                  "this count, or for all with count 0, before moetune_run()",
                                  key.num_tokens));
  }
  auto ready = std::make_shared<Ready>(
      Ready{Executor(program(key, choice->plan), device_->kernels), {}, {}});
  const LayerProgram& of = ready->executor.program();
  ready->layout = workspace_layout(of);
  for (std::size_t i = 0; i < of.tensors.size(); ++i) {
    if (of.tensors[i].role == Role::counter) ready->counters.push_back(static_cast<TensorId>(i));
  }
  const std::unique_lock lock(calls_mutex_);
  if (calls_.size() >= kMaxCalls) calls_.clear();
  calls_.insert_or_assign(key, ready);
  return ready;
}

void TunedLayer::run(const LayerCallArguments& call, cudaStream_t stream) {
  CallKey key{call.num_tokens, call.layout};
  key.layout.w13_pitch = weights_layout_.w13_pitch;
  key.layout.w2_pitch = weights_layout_.w2_pitch;
  const std::shared_ptr<const Ready> ready = find(key);
  const LayerProgram& program = ready->executor.program();
  const std::int64_t need = ready->layout.bytes + counters_bytes(program);
  if (call.workspace_bytes < static_cast<std::size_t>(need)) {
    throw Error(ErrorKind::input, fmt::format("the workspace has {} bytes, {} tokens need {}; ask "
                                              "moetune_workspace_bytes()",
                                              call.workspace_bytes, call.num_tokens, need));
  }
  Bindings bindings{};
  bindings[tensor::x] = const_cast<void*>(call.x);
  bindings[tensor::topk_ids] = const_cast<void*>(call.topk_ids);
  bindings[tensor::topk_weights] = const_cast<void*>(call.topk_weights);
  bindings[tensor::expert_map] = const_cast<void*>(call.expert_map);
  bindings[tensor::w13] = const_cast<void*>(call.w13);
  bindings[tensor::w13_scale] = const_cast<void*>(call.w13_scale);
  bindings[tensor::w2] = const_cast<void*>(call.w2);
  bindings[tensor::w2_scale] = const_cast<void*>(call.w2_scale);
  bindings[tensor::out] = call.out;
  char* const workspace = static_cast<char*>(call.workspace);
  for (std::size_t i = 0; i < ready->layout.offsets.size(); ++i)
    if (ready->layout.offsets[i] >= 0) bindings[i] = workspace + ready->layout.offsets[i];
  char* own = workspace + ready->layout.bytes;
  for (const TensorId id : ready->counters) {
    const TensorSpec& spec = program.tensors[static_cast<std::size_t>(id)];
    void* counter = device_->counters.find(stream, spec.name);
    if (counter == nullptr) {
      counter = own;
      check_cuda(cudaMemsetAsync(own, 0, CounterPool::kBytes, stream), "cudaMemsetAsync");
    }
    own += kTensorAlignment;
    bindings[static_cast<std::size_t>(id)] = counter;
  }
  ready->executor.run(bindings, stream);
}

ChoiceReport TunedLayer::explain(std::int64_t num_tokens) const {
  ChoiceReport report;
  report.num_tokens = num_tokens;
  report.choice = resolve(num_tokens, report.notes);
  return report;
}

}  // namespace moetune
