// The main of tests that need a GPU: without one they skip, and ctest shows them as skipped.
#define DOCTEST_CONFIG_IMPLEMENT
#include <cuda_runtime_api.h>

#include <doctest/doctest.h>
#include <cstdio>

int main(int argc, char** argv) {
  constexpr int kSkipped = 77;  // SKIP_RETURN_CODE in CMakeLists.txt
  int num_gpus = 0;
  const cudaError_t status = cudaGetDeviceCount(&num_gpus);
  if (status != cudaSuccess || num_gpus == 0) {
    std::printf("skipped: no GPU (%s)\n", cudaGetErrorString(status));
    return kSkipped;
  }
  return doctest::Context(argc, argv).run();
}
