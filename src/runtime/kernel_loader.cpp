#include "runtime/kernel_loader.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "core/error.hpp"

namespace moetune {

cudaKernel_t KernelLoader::load(const KernelSource& source, std::string_view expression,
                                unsigned smem_bytes) {
  const auto cubin = compiler_.get(source);
  if (!cubin->ok()) {
    throw Error(ErrorKind::failed, fmt::format("{}: {}", source.file, cubin->error));
  }
  const std::string key =
      fmt::format("{}\n{}\n{}", source.file, fmt::join(source.expressions, "\n"),
                  fmt::join(source.options, "\n"));
  const std::scoped_lock lock(mutex_);
  std::unique_ptr<Module>& module = modules_[key];
  if (!module) module = std::make_unique<Module>(*cubin);
  const cudaKernel_t kernel = module->kernel(expression);
  const auto [allowed, is_new] = smem_bytes_.try_emplace(kernel, smem_bytes);
  if (is_new || allowed->second < smem_bytes) {
    allow_smem(kernel, smem_bytes);
    allowed->second = smem_bytes;
  }
  return kernel;
}

}  // namespace moetune
