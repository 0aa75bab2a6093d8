#include "bench/techniques.hpp"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <vector>

#include "bench/check_plan.hpp"
#include "core/error.hpp"
#include "lab/loaded_plan.hpp"
#include "lab/reference.hpp"

namespace moetune {
namespace {

constexpr int kPaddedBlock = 128;  // rows of a block that padded layouts commonly ask for
constexpr int kGraphLevel = 5;
constexpr std::int64_t kMaxProfiledProducts = 64;  // of cuBLAS a side: each takes ncu a while
constexpr int kQuantiseThreads = 256;              // as in kernels/journey/quantise.cu

// What papers and pages of such kernels report.
constexpr const char* kOrderRange = "up to 4.4x";
constexpr const char* kSplitKRange = "1.18x to 1.20x in decode";
constexpr const char* kPaddingRange = "1.3x to 5x under imbalance";

std::string why_no_fp8(const Gpu& gpu, Problem problem) {
  if (gpu.cc() < 89) return "the GPU multiplies no e4m3: it takes sm_89 or later";
  problem.dtype = Dtype::fp8_block;
  try {
    check(problem);
    return "";
  } catch (const Error& error) {
    return error.what();
  }
}

std::string plan_text(const Plan& plan) {
  return fmt::format("{} {}", step_text(plan, "gemm1"), step_text(plan, "gemm2"));
}

// Steps that multiply in bf16, as the reference point's do, get their variant's fp8 reference.
void multiply_in_fp8(Plan& plan, const Gpu& gpu, Problem problem) {
  problem.dtype = Dtype::fp8_block;
  for (Step& step : plan.steps) {
    if (step.point.value_or("FP8", 0) != 0) continue;
    step.point = find_variant(step.variant)
                     .space(gpu, problem, parse_stage(step.op), Fp8Mode::on)
                     .reference();
  }
}

bool is_faster(const TechniqueSide& a, const TechniqueSide& b) {
  return a.status == LevelStatus::ok &&
         (b.status != LevelStatus::ok || a.timing.median_us < b.timing.median_us);
}

}  // namespace

std::string set_parameter(Plan& plan, std::string_view name, int value) {
  for (Step& step : plan.steps) {
    if (!step.point.has(name))
      return fmt::format("{} of {} has no {}", step.op, step.variant, name);
    step.point.set(name, value);
  }
  return "";
}

std::string with_parameter(Plan& plan, std::string_view name, const Plan& reference,
                           std::string_view op) {
  const Step* const last = plan.find("gemm2");
  if (last != nullptr && last->point.value_or("JOIN_GEMM1", 0) == 1) {
    std::string note = fmt::format(
        "both GEMMs share a launch of {}: {} starts from the reference point", last->variant, name);
    plan = reference;
    return note;
  }
  std::string note;
  for (Step& step : plan.steps) {
    if (step.point.has(name) || !(op.empty() || op == step.op)) continue;
    note += fmt::format("{}{} has no {}: {} starts from the reference point",
                        note.empty() ? "" : "; ", step.variant, name, step.op);
    step = *reference.find(step.op);
  }
  return note;
}

Techniques::Techniques(const Gpu& gpu, const Problem& problem, const std::string& cache_dir,
                       NumberedCalls& calls)
    : calls_(calls),
      gpu_(gpu),
      problem_(problem),
      no_fp8_(why_no_fp8(gpu, problem)),
      compiler_(arch_name(gpu), cache_dir, 0) {
  check_cuda(cudaSetDevice(gpu.ordinal), "cudaSetDevice");
  layer_ = std::make_unique<Layer>(gpu_, problem_, has_fp8(), compiler_);
  levels_ = std::make_unique<Levels>(gpu_, *layer_, cache_dir, 0.0);
  if (!has_fp8()) return;
  const Cubin cubin = compile(quantise_kernels(), arch_name(gpu), embedded_journey());
  if (!cubin.ok()) {
    throw Error(ErrorKind::failed, fmt::format("journey/quantise.cu: {}", cubin.error));
  }
  quantise_.emplace(cubin);
}

template <typename Measure>
void Techniques::guarded(TechniqueSide& side, const Measure& measure) {
  side.call = calls_.begin(*layer_);
  try {
    const MeasuredCall measured = measure();
    if (calls_.profiling()) return;
    side.timing = measured.timing;
    side.rel_err = measured.deviation.rel_err;
    spdlog::info("{}: {:.1f} us", side.label, side.timing.median_us);
  } catch (const Error& error) {
    if (cudaDeviceSynchronize() != cudaSuccess)
      throw Error(ErrorKind::device, fmt::format("{}: {}", side.label, error.what()));
    side.status = LevelStatus::failed;
    side.reason = error.what();
    spdlog::warn("{}: {}", side.label, side.reason);
  }
}

TechniqueSide Techniques::measure_plan(std::string label, const Plan& plan, TokenBatch& batch,
                                       bool quantise_weights) {
  TechniqueSide side;
  side.label = std::move(label);
  side.plan = plan_text(plan);
  guarded(side, [&] {
    Problem problem = batch.problem;
    const bool fp8 = plan.steps.front().point.value_or("FP8", 0) != 0;
    if (fp8) problem.dtype = Dtype::fp8_block;
    check_plan(gpu_, problem, plan, compiler_);
    LoadedPlan loaded(*layer_, problem, plan, Stage::layer);
    if (!calls_.profiling()) make_reference(*layer_, batch, fp8);
    loaded.prepare(batch);
    layer_->poison();
    LayerCall call;
    call.enqueue = [&](int routing) {
      if (quantise_weights) enqueue_quantise();
      loaded.enqueue(batch, routing);
    };
    call.result = [&] { return loaded.result(batch); };
    call.fp8 = fp8;
    return calls_.measure(*layer_, batch, call);
  });
  return side;
}

TechniqueSide Techniques::measure_padding(std::string label, int padding, TokenBatch& batch) {
  TechniqueSide side;
  side.label = std::move(label);
  side.plan = "one cuBLAS product an expert, in a CUDA graph";
  if (const std::string missing = Cublas::missing(); !missing.empty()) {
    side.status = LevelStatus::skipped;
    side.reason = missing;
    return side;
  }
  const std::int64_t products = 2 * std::min(batch.problem.shape.num_experts, batch.num_slots());
  guarded(side, [&] {
    if (calls_.profiling() && products > kMaxProfiledProducts) return MeasuredCall{};
    if (!calls_.profiling()) make_reference(*layer_, batch, false);
    levels_->set_padding(padding);
    levels_->prepare(kGraphLevel, batch);
    levels_->poison();
    LayerCall call;
    call.enqueue = [&](int routing) { levels_->enqueue(kGraphLevel, batch, routing); };
    call.result = [&] { return levels_->result(); };
    return calls_.measure(*layer_, batch, call);
  });
  if (products > kMaxProfiledProducts)
    side.no_counters =
        fmt::format("up to {} products, {} are profiled at most", products, kMaxProfiledProducts);
  return side;
}

// Writes the quantised weights that the layer has already, from the bf16 ones.
void Techniques::enqueue_quantise() {
  const LayerShape& s = problem_.shape;
  const Weights& w = layer_->weights();
  const auto quantise = [&](const Buffer& in, std::int64_t rows, std::int64_t columns,
                            const Buffer& out, const Buffer& scale) {
    launch(layer_->stream(), quantise_->kernel("moetune_journey::quantise_blocks"),
           LaunchShape{dim3(static_cast<unsigned>(rows / kScaleGroup * (columns / kScaleGroup))),
                       kQuantiseThreads},
           in.get(), static_cast<int>(columns), out.get(), scale.get<float>());
  };
  quantise(w.w13, s.num_experts * 2 * s.intermediate_size, s.hidden_size, w.w13_q, w.w13_scale);
  quantise(w.w2, s.num_experts * s.hidden_size, s.intermediate_size, w.w2_q, w.w2_scale);
}

TechniquePair Techniques::tile_order(const Plan& plan, TokenBatch& batch) {
  TechniquePair pair;
  pair.name = "column-major tile order";
  pair.expected = kOrderRange;
  Plan walked = plan;
  pair.note = with_parameter(walked, "ORDER", reference_plan(gpu_, problem_));
  set_parameter(walked, "GROUP_SIZE_M", 1);  // which only acts on the row-major walk
  set_parameter(walked, "ORDER", 0);
  pair.without = measure_plan("row-major", walked, batch, false);
  set_parameter(walked, "ORDER", 1);
  pair.with = measure_plan("column-major", walked, batch, false);
  return pair;
}

TechniquePair Techniques::split_k(const Plan& plan, TokenBatch& batch) {
  TechniquePair pair;
  pair.name = "split-K";
  pair.expected = kSplitKRange;
  Plan split = plan;
  pair.note = with_parameter(split, "SPLIT_K", reference_plan(gpu_, problem_));
  for (Step& step : split.steps)  // partial sums do not go through SwiGLU in the epilogue
    if (step.point.has("FUSE_SWIGLU")) step.point.set("FUSE_SWIGLU", 0);
  set_parameter(split, "SPLIT_K", 1);
  pair.without = measure_plan("SPLIT_K=1", split, batch, false);
  // The best way to split: GEMM1, GEMM2 or both, in 2 or 4.
  pair.with.status = LevelStatus::failed;
  for (const int first : {1, 2, 4}) {
    for (const int second : {1, 2, 4}) {
      if (first == 1 && second == 1) continue;
      for (Step& step : split.steps) step.point.set("SPLIT_K", step.op == "gemm1" ? first : second);
      TechniqueSide tried = measure_plan(fmt::format("SPLIT_K={}, {} (best of 8)", first, second),
                                         split, batch, false);
      if (is_faster(tried, pair.with) || pair.with.label.empty()) pair.with = std::move(tried);
    }
  }
  return pair;
}

TechniquePair Techniques::fused_swiglu(const Plan& plan, TokenBatch& batch) {
  TechniquePair pair;
  pair.name = "SwiGLU in GEMM1's epilogue";
  Plan fused = plan;
  pair.note = with_parameter(fused, "FUSE_SWIGLU", reference_plan(gpu_, problem_), "gemm1");
  for (Step& step : fused.steps)
    if (step.op == "gemm1" && step.point.has("SPLIT_K")) step.point.set("SPLIT_K", 1);
  const auto set = [&](int value) {
    for (Step& step : fused.steps)
      if (step.op == "gemm1") step.point.set("FUSE_SWIGLU", value);
  };
  set(0);
  pair.without = measure_plan("separate kernel", fused, batch, false);
  set(1);
  pair.with = measure_plan("fused", fused, batch, false);
  return pair;
}

TechniquePair Techniques::padding(std::string name, std::string label, int rows,
                                  TokenBatch& batch) {
  TechniquePair pair;
  pair.name = std::move(name);
  pair.expected = kPaddingRange;
  pair.note = "both sides: sorted rows, one cuBLAS product an expert, in a CUDA graph";
  pair.without = measure_padding(std::move(label), rows, batch);
  pair.with = measure_padding("rows as they are", 1, batch);
  return pair;
}

TechniquePair Techniques::fp8_weights(Plan plan, TokenBatch& batch) {
  TechniquePair pair;
  if (has_fp8()) multiply_in_fp8(plan, gpu_, problem_);
  pair.name = "fp8 weights from load";
  pair.note = "each call: the bf16 weights of all experts, whichever are needed";
  const std::string labels[] = {"quantised each call", "quantised once"};
  TechniqueSide* const sides[] = {&pair.without, &pair.with};
  for (const int i : {0, 1}) {
    if (has_fp8()) {
      *sides[i] = measure_plan(labels[i], plan, batch, i == 0);
    } else {
      sides[i]->label = labels[i];
      sides[i]->status = LevelStatus::skipped;
      sides[i]->reason = no_fp8_;
    }
  }
  return pair;
}

void Techniques::run(TechniqueRow& row, const Plan& plan, const Plan& fp8_plan) {
  Problem problem = problem_;
  problem.num_tokens = row.problem.num_tokens;
  const auto batch = layer_->make_batch(problem, calls_.num_routings());
  row.pairs = {tile_order(plan, *batch),
               split_k(plan, *batch),
               fused_swiglu(plan, *batch),
               padding("no padding to a block", fmt::format("padded to {} rows", kPaddedBlock),
                       kPaddedBlock, *batch),
               padding("no padding to the fullest", "padded to the fullest expert", 0, *batch),
               fp8_weights(fp8_plan, *batch)};
}

}  // namespace moetune
