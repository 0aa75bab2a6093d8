#include "program/builder.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>

#include "core/error.hpp"
#include "kernels/common/params.hpp"
#include "kernels/support/support.hpp"

namespace moetune {
namespace {

constexpr std::int64_t kMaxExperts = 1024;
constexpr std::int64_t kMaxSlots = 1 << 21;  // small_kernels.cu counts them in 21 bits

}  // namespace

ProgramBuilder::ProgramBuilder(const Gpu& gpu, const Problem& problem, Stage stage, bool fp8,
                               const CallLayout& layout)
    : gpu_(gpu), layout_(layout) {
  const LayerShape& s = problem.shape;
  if (s.num_experts > kMaxExperts) {
    throw Error(ErrorKind::input, fmt::format("{} experts; the sort kernel holds at most {}",
                                              s.num_experts, kMaxExperts));
  }
  if (problem.num_tokens > (kMaxSlots - 1) / s.top_k) {
    throw Error(ErrorKind::input,
                fmt::format("{} tokens for {} experts each: the sort kernel holds less than {} of "
                            "them; use at most {} tokens",
                            problem.num_tokens, s.top_k, kMaxSlots, (kMaxSlots - 1) / s.top_k));
  }
  program_.problem = problem;
  program_.stage = stage;
  program_.fp8 = fp8;
  const std::int64_t slots = num_slots();
  const std::int64_t element = fp8 ? 1 : 2;
  const auto pitched = [](std::int64_t rows, std::int64_t columns, std::int64_t pitch) {
    return (rows - 1) * std::max(columns, pitch) + columns;
  };
  const auto scales = [&](std::int64_t rows, std::int64_t columns) {
    if (!fp8) return std::int64_t{0};
    if (fp8_dtype() == Dtype::fp8_tensor) return 4 * s.num_experts;
    return 4 * s.num_experts * (rows / kScaleGroup) * (columns / kScaleGroup);
  };
  const std::int64_t w13_rows = 2 * s.intermediate_size;
  program_.tensors = {
      {"x", Role::input, 2 * pitched(problem.num_tokens, s.hidden_size, layout.x_pitch)},
      {"topk_ids", Role::input, (layout.int64_ids ? 8 : 4) * slots},
      {"topk_weights", Role::input, (layout.bf16_topk_weights ? 2 : 4) * slots},
      {"expert_map", Role::input, 4 * layout.expert_map_size},
      {"w13", Role::weight,
       element * pitched(s.num_experts * w13_rows, s.hidden_size, layout.w13_pitch)},
      {"w13_scale", Role::weight, scales(w13_rows, s.hidden_size)},
      {"w2", Role::weight,
       element * pitched(s.num_experts * s.hidden_size, s.intermediate_size, layout.w2_pitch)},
      {"w2_scale", Role::weight, scales(s.hidden_size, s.intermediate_size)},
      {"out", Role::output, 2 * pitched(problem.num_tokens, s.hidden_size, layout.out_pitch)},
  };
}

Dtype ProgramBuilder::fp8_dtype() const {
  return problem().dtype == Dtype::fp8_tensor ? Dtype::fp8_tensor : Dtype::fp8_block;
}

std::int64_t ProgramBuilder::num_slots() const {
  return problem().num_tokens * shape().top_k;
}

TensorId ProgramBuilder::find_or_add(std::string_view name, Role role, std::int64_t bytes) {
  const TensorId found = program_.find(name);
  if (found >= 0) {
    const TensorSpec& spec = program_.tensors[static_cast<std::size_t>(found)];
    if (spec.role != role || spec.bytes != bytes)
      throw std::logic_error(fmt::format("two different tensors named {}", name));
    return found;
  }
  if (program_.tensors.size() == kMaxTensors) throw std::logic_error("too many tensors");
  program_.tensors.push_back({std::string(name), role, bytes});
  return static_cast<TensorId>(program_.tensors.size()) - 1;
}

TensorId ProgramBuilder::scratch(std::string_view name, std::int64_t bytes) {
  return find_or_add(name, Role::scratch, bytes);
}

TensorId ProgramBuilder::counter(std::string_view name, std::int64_t bytes) {
  return find_or_add(name, Role::counter, bytes);
}

Op& ProgramBuilder::add_op(const KernelSource& source, std::string_view expression, Grid grid,
                           Work work) {
  auto& sources = program_.sources;
  auto found = std::find(sources.begin(), sources.end(), source);
  if (found == sources.end()) found = sources.insert(found, source);
  grid.overlap = gpu_.cc() >= 90;
  Op op;
  op.kernel = {static_cast<int>(found - sources.begin()), std::string(expression)};
  op.grid = grid;
  op.work = std::move(work);
  std::vector<Op>& ops = to_setup_ ? program_.setup : program_.ops;
  ops.push_back(std::move(op));
  return ops.back();
}

void ProgramBuilder::add_argument(Op& op, Argument argument, const std::vector<Use>& uses) {
  op.arguments.push_back(std::move(argument));
  op.uses.insert(op.uses.end(), uses.begin(), uses.end());
}

void ProgramBuilder::add_map(Op& op, const std::optional<TensorMapSpec>& map) {
  Argument argument;
  argument.map = map ? *map : TensorMapSpec{.tensor = -1};
  op.arguments.push_back(std::move(argument));
}

std::int64_t max_row_tiles(std::int64_t num_slots, std::int64_t num_experts, int block_m) {
  return std::min(num_slots, num_slots / block_m + std::min(num_experts, num_slots));
}

}  // namespace moetune
