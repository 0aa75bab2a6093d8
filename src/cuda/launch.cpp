#include "cuda/launch.hpp"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include "core/error.hpp"

namespace moetune {

Module::Module(const Cubin& cubin) {
  check_cuda(
      cudaLibraryLoadData(&library_, cubin.image.data(), nullptr, nullptr, 0, nullptr, nullptr, 0),
      "cudaLibraryLoadData");
  for (const CompiledKernel& compiled : cubin.kernels) {
    cudaKernel_t kernel = nullptr;
    check_cuda(cudaLibraryGetKernel(&kernel, library_, compiled.lowered_name.c_str()),
               compiled.lowered_name.c_str());
    kernels_.emplace(compiled.expression, kernel);
  }
}

Module::~Module() {
  if (cudaLibraryUnload(library_) != cudaSuccess) spdlog::debug("cudaLibraryUnload failed");
}

cudaKernel_t Module::kernel(std::string_view expression) const {
  const auto found = kernels_.find(expression);
  if (found == kernels_.end()) {
    throw Error(ErrorKind::failed, fmt::format("the cubin has no kernel '{}'", expression));
  }
  return found->second;
}

void allow_smem(cudaKernel_t kernel, unsigned bytes) {
  check_cuda(
      cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                           cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
      "raising the shared memory limit");
}

void launch(cudaStream_t stream, cudaKernel_t kernel, const LaunchShape& shape, void** arguments) {
  cudaLaunchAttribute attributes[2] = {};
  unsigned num_attributes = 0;
  if (shape.overlap) {
    cudaLaunchAttribute& attribute = attributes[num_attributes++];
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
  }
  if (shape.cluster > 1) {
    cudaLaunchAttribute& attribute = attributes[num_attributes++];
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {shape.cluster, 1, 1};
  }
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = dim3(shape.threads);
  config.dynamicSmemBytes = shape.smem_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = num_attributes;
  check_cuda(cudaLaunchKernelExC(&config, reinterpret_cast<const void*>(kernel), arguments),
             "kernel launch");
}

}  // namespace moetune
