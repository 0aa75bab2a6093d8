#include "bench/loaded_plan.hpp"

#include <fmt/format.h>

#include "core/error.hpp"
#include "layer/reference.hpp"
#include "tune/static_check.hpp"

namespace moetune {
namespace {

// The rules that a step breaks; in this process a kernel that hangs would stop everything. Those
// that only spare a search do not matter here.
void check_rules(const Gpu& gpu, const Problem& problem, const Step& step) {
  SearchSpace space = find_variant(step.variant).space(gpu, problem, stage_of(step), Fp8Mode::both);
  std::erase_if(space.constraints, [](const Constraint& rule) { return rule.spares_search; });
  if (const auto rejection = space.reject(step.point)) {
    throw Error(ErrorKind::failed, fmt::format("{} {}: {}: {}", step.op, step.variant,
                                               rejection->rule, rejection->reason));
  }
}

}  // namespace

LoadedPlan::LoadedPlan(const Gpu& gpu, const Problem& problem, const Plan& plan,
                       Compiler& compiler) {
  const auto load = [&](const char* op, std::unique_ptr<Module>& module) {
    const Step* step = plan.find(op);
    if (step == nullptr) throw Error(ErrorKind::failed, fmt::format("the plan has no {} step", op));
    check_rules(gpu, problem, *step);
    Trial trial;
    const auto cubin = check_static(gpu, problem, *step, compiler, trial);
    if (!cubin) {
      throw Error(ErrorKind::failed, fmt::format("{}:{}: {}: {}", step->variant, step->point.key(),
                                                 to_string(trial.status), trial.reason));
    }
    module = std::make_unique<Module>(*cubin);
    return gemm_step(problem, *step, module->kernel(cubin->kernels.front().expression));
  };
  gemm1_ = load("gemm1", modules_[0]);
  gemm2_ = load("gemm2", modules_[1]);
  if (const std::string defect = pair_defect(plan); !defect.empty()) {
    throw Error(ErrorKind::failed, defect);
  }
}

void LoadedPlan::prepare(Layer& layer, TokenBatch& batch) const {
  layer.prepare(Stage::layer, &gemm1_, &gemm2_, batch);
}

void LoadedPlan::enqueue(Layer& layer, TokenBatch& batch, int routing) const {
  layer.enqueue(Stage::layer, &gemm1_, &gemm2_, batch, routing);
}

Deviation LoadedPlan::check(Layer& layer, TokenBatch& batch, std::string_view what) const {
  make_reference(layer, batch, fp8());
  prepare(layer, batch);
  layer.poison();
  enqueue(layer, batch, 0);
  const Deviation deviation = compare(layer, result(layer, batch), nullptr,
                                      batch.reference[fp8() ? 1 : 0]->out.get<float>(),
                                      batch.problem.num_tokens, batch.problem.shape.hidden_size);
  const std::string defect = judge_deviation(deviation, tolerance(fp8()));
  if (!defect.empty()) throw Error(ErrorKind::failed, fmt::format("{}: {}", what, defect));
  return deviation;
}

}  // namespace moetune
