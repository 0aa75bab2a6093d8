#include "lab/loaded_plan.hpp"

#include <fmt/format.h>

#include <stdexcept>

#include "core/error.hpp"
#include "lab/reference.hpp"
#include "program/build.hpp"

namespace moetune {

LoadedPlan::LoadedPlan(Layer& layer, const Problem& problem, Plan plan, Stage stage)
    : layer_(layer), problem_(problem), plan_(std::move(plan)), stage_(stage) {
  const Step* const last = plan_.find(stage == Stage::gemm1 ? "gemm1" : "gemm2");
  fp8_ = last != nullptr && last->point.value_or("FP8", 0) == 1;
}

void LoadedPlan::prepare(TokenBatch& batch) {
  std::unique_ptr<Executor>& executor = executors_[batch.problem.num_tokens];
  if (!executor) {
    Problem problem = problem_;
    problem.num_tokens = batch.problem.num_tokens;
    executor =
        std::make_unique<Executor>(build(layer_.gpu(), problem, plan_, stage_), layer_.kernels());
  }
  layer_.reserve(executor->program(), batch);
}

const Executor& LoadedPlan::executor(const TokenBatch& batch) const {
  const auto found = executors_.find(batch.problem.num_tokens);
  if (found == executors_.end() || !found->second)
    throw std::logic_error("a call of a plan that was not prepared");
  return *found->second;
}

const LayerProgram& LoadedPlan::program(const TokenBatch& batch) const {
  return executor(batch).program();
}

void LoadedPlan::set_up(TokenBatch& batch) {
  const Executor& ready = executor(batch);
  for (int r = 0; r < static_cast<int>(batch.routings.size()); ++r)
    ready.set_up(layer_.bind(ready.program(), batch, r), layer_.stream().get());
  if (stage_ == Stage::gemm2) pack_reference(ready.program(), batch);
}

// The reference lies by slot, a GEMM2 reads it by position.
void LoadedPlan::pack_reference(const LayerProgram& program, TokenBatch& batch) {
  const ReferenceOutput& reference = *batch.reference[fp8_ ? 1 : 0];
  const Bindings bindings = layer_.bind(program, batch, 0);
  const auto bound = [&](std::string_view name) {
    return bindings[static_cast<std::size_t>(program.find(name))];
  };
  const int* const positions = static_cast<const int*>(bound("positions"));
  const dim3 grid(static_cast<unsigned>(batch.num_slots()));
  const auto row_bytes = [&](const Buffer& rows) {
    return static_cast<long long>(rows.size()) / batch.num_slots();
  };
  launch(layer_.stream(), layer_.judge().kernel("moetune_reference::reference_pack"),
         LaunchShape{grid, 256}, reference.gemm2_input.get(), positions,
         row_bytes(reference.gemm2_input), bound(fp8_ ? "activation_q" : "activation"));
  if (!fp8_) return;
  launch(layer_.stream(), layer_.judge().kernel("moetune_reference::reference_pack_scales"),
         LaunchShape{grid, 128}, reference.gemm2_scale.get<float>(), positions,
         narrow(row_bytes(reference.gemm2_scale) / 4), static_cast<long long>(batch.num_slots()),
         static_cast<float*>(bound("activation_scale")));
}

void LoadedPlan::enqueue(TokenBatch& batch, int routing) {
  const Executor& ready = executor(batch);
  ready.run(layer_.bind(ready.program(), batch, routing), layer_.stream().get());
}

Matrix LoadedPlan::result(const TokenBatch& batch) const {
  const ProgramResult& result = program(batch).result;
  const Bindings bindings = layer_.bind(program(batch), batch, 0);
  const void* const data = bindings[static_cast<std::size_t>(result.data)];
  if (result.scales < 0) return {data, nullptr, Format::bf16, 1, 1};
  return {data,
          static_cast<const float*>(bindings[static_cast<std::size_t>(result.scales)]),
          Format::e4m3,
          1,
          result.scale_columns,
          result.scale_pitch};
}

const int* LoadedPlan::positions(const TokenBatch& batch) const {
  const LayerProgram& of = program(batch);
  if (!of.result.by_position) return nullptr;
  const Bindings bindings = layer_.bind(of, batch, 0);
  return static_cast<const int*>(bindings[static_cast<std::size_t>(of.find("positions"))]);
}

Deviation LoadedPlan::deviation(const TokenBatch& batch) const {
  const ReferenceOutput& reference = *batch.reference[fp8_ ? 1 : 0];
  const LayerShape& s = batch.problem.shape;
  const bool activation = stage_ == Stage::gemm1;
  const Buffer& want = activation ? reference.activation : reference.out;
  return compare(layer_, result(batch), positions(batch), want.get<float>(),
                 activation ? batch.num_slots() : batch.problem.num_tokens,
                 activation ? s.intermediate_size : s.hidden_size);
}

Deviation LoadedPlan::check(TokenBatch& batch, std::string_view what) {
  make_reference(layer_, batch, fp8());
  prepare(batch);
  layer_.poison();
  set_up(batch);
  enqueue(batch, 0);
  const Deviation deviation = this->deviation(batch);
  const std::string defect = judge_deviation(deviation, tolerance(fp8()));
  if (!defect.empty()) throw Error(ErrorKind::failed, fmt::format("{}: {}", what, defect));
  return deviation;
}

}  // namespace moetune
