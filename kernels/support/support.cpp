#include "kernels/support/support.hpp"

#include <fmt/format.h>

namespace moetune {

std::string activate_expression(ActivateInput input, ActivateOutput output) {
  const char* in = input == ActivateInput::bf16      ? "bf16"
                   : input == ActivateInput::gate_up ? "gate_up"
                                                     : "partial";
  const char* out = output == ActivateOutput::bf16        ? "none"
                    : output == ActivateOutput::fp8_block ? "block"
                                                          : "tensor";
  return fmt::format("moetune::activate<moetune::Input::{}, moetune::Quantise::{}>", in, out);
}

std::string sort_expression(bool in_one_launch, Beside beside) {
  const char* const name = beside == Beside::nothing     ? "nothing"
                           : beside == Beside::copy      ? "copy"
                           : beside == Beside::fp8_block ? "block"
                                                         : "tensor";
  return fmt::format("moetune::{}<moetune::Beside::{}>",
                     in_one_launch ? "sort_small" : "sort_count", name);
}

std::string combine_expression(std::int64_t top_k) {
  return fmt::format("moetune::combine<{}>", top_k);
}

std::int64_t packed_scale_bytes(std::int64_t rows, std::int64_t columns) {
  return 4 * rows * ((columns + kScaleGroup - 1) / kScaleGroup);
}

KernelSource small_kernels(const Problem& problem) {
  const Dtype dtype = problem.dtype;
  KernelSource source{
      std::string(kSmallKernelsFile),
      {"moetune::sort_place", "moetune::clear", combine_expression(problem.shape.top_k)},
      {}};
  for (const bool in_one_launch : {true, false}) {
    const Beside fp8 = dtype == Dtype::fp8_tensor ? Beside::fp8_tensor : Beside::fp8_block;
    for (const Beside beside : {Beside::nothing, Beside::copy, fp8})
      source.expressions.push_back(sort_expression(in_one_launch, beside));
  }
  for (const ActivateInput input : {ActivateInput::gate_up, ActivateInput::partial}) {
    source.expressions.push_back(activate_expression(input, ActivateOutput::bf16));
  }
  source.expressions.push_back(activate_expression(ActivateInput::bf16, ActivateOutput::bf16));
  const auto fp8 =
      dtype == Dtype::fp8_tensor ? ActivateOutput::fp8_tensor : ActivateOutput::fp8_block;
  for (const ActivateInput input :
       {ActivateInput::bf16, ActivateInput::gate_up, ActivateInput::partial}) {
    source.expressions.push_back(activate_expression(input, fp8));
  }
  return source;
}

KernelSource reference_kernels() {
  return {"reference/reference.cu",
          {"moetune_reference::reference_group", "moetune_reference::reference_gemm",
           "moetune_reference::reference_swiglu", "moetune_reference::reference_quantise",
           "moetune_reference::reference_convert", "moetune_reference::reference_combine",
           "moetune_reference::reference_pack", "moetune_reference::reference_pack_scales",
           "moetune_reference::fill_normal_bf16", "moetune_reference::compare"},
          {}};
}

std::vector<KernelSource> support_sources(const Problem& problem) {
  return {small_kernels(problem), reference_kernels()};
}

}  // namespace moetune
