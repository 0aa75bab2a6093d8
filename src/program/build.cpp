#include "program/build.hpp"

#include <fmt/format.h>

#include "core/error.hpp"
#include "program/steps.hpp"

namespace moetune {
namespace {

const Variant* fusing_variant(const Plan& plan) {
  const Step* const step = plan.find("gemm2");
  if (step == nullptr) return nullptr;
  const Variant& variant = find_variant(step->variant);
  return variant.fuses_gemms(step->point) ? &variant : nullptr;
}

void append_gemm1_stage(ProgramBuilder& b, const GemmStep& gemm1) {
  b.to_setup(true);
  append_sort(b, {.gemm1 = &gemm1.launch});
  b.to_setup(false);
  if (!gemm1.launch.gathers || gemm1.fp8()) append_x_rows(b, gemm1.launch);
  append_gemm(b, Stage::gemm1, gemm1);
  append_activation(b, gemm1.launch, gemm1.fp8());
  ProgramResult& result = b.result();
  result.by_position = true;
  result.data = b.find(gemm1.fp8() ? "activation_q" : "activation");
  if (!gemm1.fp8()) return;
  result.scales = b.find("activation_scale");
  result.scale_columns =
      b.fp8_dtype() == Dtype::fp8_block ? kScaleGroup : narrow(b.shape().intermediate_size);
  result.scale_pitch = b.num_slots();
}

void append_gemm2_stage(ProgramBuilder& b, const GemmStep& gemm2) {
  b.to_setup(true);
  append_sort(b, {.gemm2 = &gemm2.launch});
  b.to_setup(false);
  if (gemm2.launch.sums()) append_clear(b);
  append_gemm(b, Stage::gemm2, gemm2);
  append_end(b, gemm2.launch);
}

void append_layer(ProgramBuilder& b, const GemmStep& gemm1, const GemmStep& gemm2) {
  append_sort(b, {.gemm1 = &gemm1.launch,
                  .gemm2 = &gemm2.launch,
                  .makes_x_for = gemm1.launch.gathers ? &gemm1.launch : nullptr,
                  .clears_out = gemm2.launch.sums()});
  if (!gemm1.launch.gathers) append_x_rows(b, gemm1.launch);
  append_gemm(b, Stage::gemm1, gemm1);
  append_activation(b, gemm1.launch, gemm2.fp8());
  append_gemm(b, Stage::gemm2, gemm2);
  append_end(b, gemm2.launch);
}

}  // namespace

LayerProgram build(const Gpu& gpu, const Problem& problem, const Plan& plan, Stage stage,
                   const CallLayout& layout) {
  const Stage last = stage == Stage::gemm1 ? Stage::gemm1 : Stage::gemm2;
  const GemmStep step = gemm_step(gpu, problem, last, plan);
  ProgramBuilder builder(gpu, problem, stage, step.fp8(), layout);
  const Variant* const fusing = stage == Stage::gemm1 ? nullptr : fusing_variant(plan);
  if (stage == Stage::gemm1) {
    append_gemm1_stage(builder, step);
  } else if (stage == Stage::layer) {
    const GemmStep first = gemm_step(gpu, problem, Stage::gemm1, plan);
    if (fusing != nullptr) {
      fusing->append_layer(builder, plan);
    } else {
      append_layer(builder, first, step);
    }
  } else if (fusing == nullptr) {
    append_gemm2_stage(builder, step);
  } else {
    throw Error(
        ErrorKind::input,
        fmt::format("a GEMM2 of {} that does GEMM1 too has no time by itself; run the layer",
                    fusing->name()));
  }
  return builder.finish();
}

}  // namespace moetune
