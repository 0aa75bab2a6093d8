#include "program/program.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace moetune {
namespace {

bool writes(const Use& use) {
  return use.access != Access::read;
}
bool reads(const Use& use) {
  return use.access != Access::write;
}

std::string op_defect(const LayerProgram& program, const Op& op, std::vector<bool>& written) {
  const auto at = [](TensorId id) { return static_cast<std::size_t>(id); };
  for (const Use& use : op.uses) {  // in order: a launch of two GEMMs reads what its first wrote
    const TensorSpec& spec = program.tensors.at(at(use.tensor));
    if (spec.role == Role::scratch && reads(use) && !written[at(use.tensor)])
      return fmt::format("{} reads {}, which nothing wrote", op.work.step, spec.name);
    if ((spec.role == Role::input || spec.role == Role::weight) && writes(use))
      return fmt::format("{} writes {}, the caller's", op.work.step, spec.name);
    if (writes(use)) written[at(use.tensor)] = true;
  }
  for (const Argument& argument : op.arguments) {
    for (const Pointer& pointer : argument.pointers) {
      const TensorSpec& spec = program.tensors.at(at(pointer.tensor));
      const bool is_used = std::any_of(op.uses.begin(), op.uses.end(), [&](const Use& use) {
        return use.tensor == pointer.tensor;
      });
      if (!is_used) return fmt::format("{} has {}'s address, unsaid", op.work.step, spec.name);
      if (pointer.offset + sizeof(void*) > argument.bytes.size() || pointer.tensor_offset < 0 ||
          pointer.tensor_offset >= spec.bytes)
        return fmt::format("{}: an address outside of {}", op.work.step, spec.name);
    }
  }
  return "";
}

}  // namespace

TensorId LayerProgram::find(std::string_view name) const {
  const auto found = std::find_if(tensors.begin(), tensors.end(),
                                  [&](const TensorSpec& spec) { return spec.name == name; });
  return found == tensors.end() ? -1 : static_cast<TensorId>(found - tensors.begin());
}

bool LayerProgram::is_set_up(TensorId id) const {
  return std::any_of(setup.begin(), setup.end(), [&](const Op& op) {
    return std::any_of(op.uses.begin(), op.uses.end(),
                       [&](const Use& use) { return use.tensor == id && writes(use); });
  });
}

WorkspaceLayout workspace_layout(const LayerProgram& program, bool of_setup) {
  WorkspaceLayout layout;
  for (std::size_t i = 0; i < program.tensors.size(); ++i) {
    const TensorSpec& spec = program.tensors[i];
    const bool is_here =
        spec.role == Role::scratch && program.is_set_up(static_cast<TensorId>(i)) == of_setup;
    layout.offsets.push_back(is_here ? layout.bytes : -1);
    if (is_here)
      layout.bytes += (spec.bytes + kTensorAlignment - 1) / kTensorAlignment * kTensorAlignment;
  }
  return layout;
}

std::int64_t workspace_bytes(const LayerProgram& program) {
  return workspace_layout(program, false).bytes + workspace_layout(program, true).bytes;
}

std::string program_defect(const LayerProgram& program) {
  std::vector<bool> written(program.tensors.size(), false);
  if (program.stage == Stage::gemm2) {  // whoever measures it puts its rows there
    for (const char* const name : {"activation", "activation_q", "activation_scale"})
      if (const TensorId id = program.find(name); id >= 0)
        written[static_cast<std::size_t>(id)] = true;
  }
  for (const std::vector<Op>* ops : {&program.setup, &program.ops}) {
    for (const Op& op : *ops) {
      if (std::string defect = op_defect(program, op, written); !defect.empty()) return defect;
    }
  }
  if (program.stage == Stage::layer && !written[tensor::out]) return "nothing writes the output";
  return "";
}

}  // namespace moetune
