#include "tune/workspace.hpp"

#include <fmt/format.h>

#include "core/error.hpp"
#include "kernels/support/support.hpp"
#include "kernels/variant.hpp"

namespace moetune {
namespace {

GemmLaunch launch_of(const Problem& problem, Stage stage, const Plan& plan) {
  const Step* step = plan.find(to_string(stage));
  if (step == nullptr) {
    throw Error(ErrorKind::input, fmt::format("the plan lacks its step {}", to_string(stage)));
  }
  return find_variant(step->variant).launch(problem, stage, step->point);
}

std::int64_t num_groups(std::int64_t columns) {
  return (columns + kScaleGroup - 1) / kScaleGroup;
}

}  // namespace

std::int64_t workspace_bytes(const Problem& problem, Stage stage, const Plan& plan) {
  const LayerShape& s = problem.shape;
  const std::int64_t slots = problem.num_tokens * s.top_k;
  std::int64_t sum = slots * s.intermediate_size * 2;  // the activation
  bool fp8 = false;
  if (stage != Stage::gemm2) {
    const GemmLaunch gemm1 = launch_of(problem, Stage::gemm1, plan);
    const std::int64_t values = slots * 2 * s.intermediate_size;
    if (gemm1.output == Output::bf16) sum += values * 2;
    if (gemm1.output == Output::partial) sum += values * 4 * gemm1.split_k;
    fp8 = gemm1.fp8;
    if (!gemm1.gathers) {
      sum += slots * s.hidden_size * (fp8 ? 1 : 2);
      if (fp8) sum += packed_scale_bytes(slots, s.hidden_size);
    } else if (fp8) {
      const bool is_a_row = problem.dtype == Dtype::fp8_tensor;
      sum += problem.num_tokens * (s.hidden_size + 4 * (is_a_row ? 1 : num_groups(s.hidden_size)));
    }
  }
  if (stage != Stage::gemm1) {
    const GemmLaunch gemm2 = launch_of(problem, Stage::gemm2, plan);
    if (!gemm2.sums()) {
      sum += slots * s.hidden_size * (gemm2.output == Output::partial ? 4 * gemm2.split_k : 2);
    }
    sum += problem.num_tokens * s.hidden_size * 2;
    fp8 = gemm2.fp8;
  }
  if (fp8) sum += slots * s.intermediate_size + packed_scale_bytes(slots, s.intermediate_size);
  return sum;
}

}  // namespace moetune
