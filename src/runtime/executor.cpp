#include "runtime/executor.hpp"

#include <fmt/format.h>

#include <cstring>
#include <stdexcept>

#include "core/error.hpp"
#include "cuda/tensor_map.hpp"

namespace moetune {
namespace {

constexpr std::size_t kMaxArguments = 6;
constexpr std::size_t kMaxArgumentBytes = 256;  // of one; a tensor map has 128

struct alignas(64) ArgumentStorage {
  std::byte bytes[kMaxArgumentBytes];
};

void* address(const Bindings& bindings, TensorId tensor, std::int64_t offset) {
  return static_cast<char*>(bindings[static_cast<std::size_t>(tensor)]) + offset;
}

void fill(const Argument& argument, const Bindings& bindings, ArgumentStorage& storage) {
  if (argument.map) {
    TensorMap map;
    if (const TensorMapSpec& m = *argument.map; m.tensor >= 0) {
      map = TensorMap(address(bindings, m.tensor, 0), m.rows, m.columns, m.pitch, m.element_bytes,
                      m.box_rows, m.promotion);
    }
    std::memcpy(storage.bytes, &map.value, sizeof map.value);
    return;
  }
  std::memcpy(storage.bytes, argument.bytes.data(), argument.bytes.size());
  for (const Pointer& pointer : argument.pointers) {
    void* const value = address(bindings, pointer.tensor, pointer.tensor_offset);
    std::memcpy(storage.bytes + pointer.offset, &value, sizeof value);
  }
}

void run_op(const Op& op, cudaKernel_t kernel, const Bindings& bindings, cudaStream_t stream) {
  ArgumentStorage storage[kMaxArguments];
  void* arguments[kMaxArguments] = {};
  for (std::size_t i = 0; i < op.arguments.size(); ++i) {
    fill(op.arguments[i], bindings, storage[i]);
    arguments[i] = storage[i].bytes;
  }
  const LaunchShape shape{.grid = dim3(op.grid.x, op.grid.y),
                          .threads = op.grid.threads,
                          .smem_bytes = op.grid.smem_bytes,
                          .overlap = op.grid.overlap,
                          .cluster = op.grid.cluster};
  try {
    launch(stream, kernel, shape, arguments);
  } catch (const Error& error) {
    throw Error(error.kind(), fmt::format("{}: {}", op.work.step, error.what()));
  }
}

std::vector<cudaKernel_t> load(const LayerProgram& program, const std::vector<Op>& ops,
                               KernelLoader& loader) {
  std::vector<cudaKernel_t> kernels;
  for (const Op& op : ops) {
    if (op.arguments.size() > kMaxArguments) throw std::logic_error("too many arguments");
    for (const Argument& argument : op.arguments)
      if (argument.bytes.size() > kMaxArgumentBytes) throw std::logic_error("a large argument");
    kernels.push_back(loader.load(program.sources.at(static_cast<std::size_t>(op.kernel.source)),
                                  op.kernel.expression, op.grid.smem_bytes));
  }
  return kernels;
}

}  // namespace

Executor::Executor(LayerProgram program, KernelLoader& loader)
    : program_(std::move(program)),
      setup_kernels_(load(program_, program_.setup, loader)),
      kernels_(load(program_, program_.ops, loader)) {}

void Executor::set_up(const Bindings& bindings, cudaStream_t stream) const {
  for (std::size_t i = 0; i < program_.setup.size(); ++i)
    run_op(program_.setup[i], setup_kernels_[i], bindings, stream);
}

void Executor::run(const Bindings& bindings, cudaStream_t stream) const {
  for (std::size_t i = 0; i < program_.ops.size(); ++i)
    run_op(program_.ops[i], kernels_[i], bindings, stream);
}

}  // namespace moetune
