// Puts a LayerProgram together: variants and the generic steps add tensors and ops to it.
#pragma once

#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/gpu.hpp"
#include "program/program.hpp"

namespace moetune {

// A struct that a kernel takes by value, with the tensors that its pointers point to.
template <typename P>
class Params {
 public:
  P value{};

  template <typename T>
  void bind(T* P::*member, TensorId tensor, Access access, std::int64_t tensor_offset = 0) {
    bind_at(&(value.*member), tensor, access, tensor_offset);
  }
  template <typename T, std::size_t kCount>
  void bind(T* (P::*member)[kCount], std::size_t index, TensorId tensor, Access access,
            std::int64_t tensor_offset = 0) {
    bind_at(&(value.*member)[index], tensor, access, tensor_offset);
  }
  // `field`: a pointer somewhere in `value`.
  template <typename T>
  void bind_within(T* const& field, TensorId tensor, Access access, std::int64_t offset = 0) {
    bind_at(&field, tensor, access, offset);
  }
  const std::vector<Use>& uses() const { return uses_; }
  Argument argument() const {
    Argument argument;
    argument.bytes.resize(sizeof(P));
    std::memcpy(argument.bytes.data(), &value, sizeof(P));
    argument.pointers = pointers_;
    return argument;
  }

 private:
  void bind_at(const void* field, TensorId tensor, Access access, std::int64_t tensor_offset) {
    const auto offset =
        reinterpret_cast<const char*>(field) - reinterpret_cast<const char*>(&value);
    pointers_.push_back({static_cast<std::size_t>(offset), tensor, tensor_offset});
    uses_.push_back({tensor, access});
  }
  std::vector<Pointer> pointers_;
  std::vector<Use> uses_;
};

class ProgramBuilder {
 public:
  // Throws Error(input) where the sort cannot hold the problem's experts or slots.
  ProgramBuilder(const Gpu& gpu, const Problem& problem, Stage stage, bool fp8,
                 const CallLayout& layout = {});

  const Gpu& gpu() const { return gpu_; }
  const Problem& problem() const { return program_.problem; }
  const LayerShape& shape() const { return program_.problem.shape; }
  Stage stage() const { return program_.stage; }
  bool fp8() const { return program_.fp8; }
  const CallLayout& layout() const { return layout_; }
  // Which scales fp8 products have: fp8_block unless the problem says fp8_tensor.
  Dtype fp8_dtype() const;
  std::int64_t num_slots() const;

  // The tensor of this name, made if there is none; the same for every op that asks for it.
  TensorId scratch(std::string_view name, std::int64_t bytes);
  TensorId counter(std::string_view name, std::int64_t bytes);
  TensorId find(std::string_view name) const { return program_.find(name); }

  // Where following ops go: the setup, or the call (at first).
  void to_setup(bool setup) { to_setup_ = setup; }
  // Adds a launch of the source's first expression, or of `expression`; grid.overlap is set here.
  template <typename... P>
  Op& add(const KernelSource& source, std::string_view expression, Grid grid, Work work,
          const Params<P>&... params) {
    Op& op = add_op(source, expression, grid, std::move(work));
    (add_argument(op, params.argument(), params.uses()), ...);
    return op;
  }
  // A further argument: what the copy engine reads; zeros where it reads nothing.
  static void add_map(Op& op, const std::optional<TensorMapSpec>& map);

  ProgramResult& result() { return program_.result; }
  LayerProgram finish() { return std::move(program_); }

 private:
  TensorId find_or_add(std::string_view name, Role role, std::int64_t bytes);
  Op& add_op(const KernelSource& source, std::string_view expression, Grid grid, Work work);
  static void add_argument(Op& op, Argument argument, const std::vector<Use>& uses);

  Gpu gpu_;
  CallLayout layout_;
  LayerProgram program_;
  bool to_setup_ = false;
};

// Largest number of row tiles any routing can need.
std::int64_t max_row_tiles(std::int64_t num_slots, std::int64_t num_experts, int block_m);

}  // namespace moetune
