#include "cuda/device.hpp"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <fstream>

#include "core/error.hpp"

namespace moetune {
namespace {

// Destructors must not throw; a failure here follows one that has been reported already.
void log_failure(cudaError_t status, const char* what) {
  if (status != cudaSuccess) spdlog::debug("{}: {}", what, cudaGetErrorString(status));
}

int attribute(cudaDeviceAttr which, int ordinal) {
  int value = 0;
  check_cuda(cudaDeviceGetAttribute(&value, which, ordinal), "cudaDeviceGetAttribute");
  return value;
}

// "580.159.04", as the kernel module says; "CUDA 13.0" where it does not.
std::string driver_version() {
  std::ifstream file("/proc/driver/nvidia/version");
  std::string word;
  while (file >> word) {  // the version is the first word with dots and digits only
    if (word.find('.') != std::string::npos &&
        word.find_first_not_of("0123456789.") == std::string::npos) {
      return word;
    }
  }
  int driver = 0;
  check_cuda(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
  return fmt::format("CUDA {}.{}", driver / 1000, driver % 1000 / 10);
}

Gpu describe(int ordinal) {
  cudaDeviceProp properties{};
  check_cuda(cudaGetDeviceProperties(&properties, ordinal), "cudaGetDeviceProperties");
  Gpu gpu;
  try {  // achievable rates, where this GPU model is known
    gpu = known_gpu(properties.name);
  } catch (const Error&) {
    gpu = Gpu{};
  }
  gpu.name = properties.name;
  gpu.cc_major = properties.major;
  gpu.cc_minor = properties.minor;
  gpu.num_sms = properties.multiProcessorCount;
  gpu.smem_per_block = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, ordinal);
  gpu.smem_per_sm = attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, ordinal);
  gpu.l2_bytes = properties.l2CacheSize;
  gpu.memory_bytes = static_cast<std::int64_t>(properties.totalGlobalMem);
  gpu.driver = driver_version();
  gpu.offline = false;
  gpu.ordinal = ordinal;
  return gpu;
}

}  // namespace

void check_cuda(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  // Clears the sticky-free errors, so that the next check does not report this one again.
  cudaGetLastError();
  throw Error(ErrorKind::device, fmt::format("{}: {}", what, cudaGetErrorString(status)));
}

std::vector<Gpu> list_gpus() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) return {};
  std::vector<Gpu> gpus;
  for (int i = 0; i < count; ++i) {
    try {
      gpus.push_back(describe(i));
    } catch (const Error& error) {
      spdlog::warn("GPU {} cannot be used: {}", i, error.what());
    }
  }
  return gpus;
}

std::string why_no_gpu() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaSuccess && count > 0) return "";
  return cudaGetErrorString(status == cudaSuccess ? cudaErrorNoDevice : status);
}

Stream::Stream() {
  check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
}
Stream::~Stream() {
  log_failure(cudaStreamDestroy(stream_), "cudaStreamDestroy");
}
void Stream::synchronize() const {
  check_cuda(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
}

Event::Event() {
  check_cuda(cudaEventCreate(&event_), "cudaEventCreate");
}
Event::~Event() {
  if (event_ != nullptr) log_failure(cudaEventDestroy(event_), "cudaEventDestroy");
}
void Event::record(const Stream& stream) const {
  check_cuda(cudaEventRecord(event_, stream.get()), "cudaEventRecord");
}
double elapsed_us(const Event& begin, const Event& end) {
  check_cuda(cudaEventSynchronize(end.get()), "cudaEventSynchronize");
  float ms = 0;
  check_cuda(cudaEventElapsedTime(&ms, begin.get(), end.get()), "cudaEventElapsedTime");
  return static_cast<double>(ms) * 1e3;
}

Buffer::Buffer(std::size_t bytes) : bytes_(bytes) {
  if (bytes > 0) {
    const cudaError_t status = cudaMalloc(&data_, bytes);
    if (status != cudaSuccess) {
      cudaGetLastError();
      throw Error(ErrorKind::device,
                  fmt::format("cannot allocate {:.2f} GB of GPU memory: {}",
                              static_cast<double>(bytes) / 1e9, cudaGetErrorString(status)));
    }
  }
}
Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}
Buffer::~Buffer() {
  if (data_ != nullptr) log_failure(cudaFree(data_), "cudaFree");
}
void Buffer::reserve(std::size_t bytes) {
  if (bytes <= bytes_) return;
  *this = Buffer();  // frees first: old and new together may not fit
  *this = Buffer(bytes);
}
void Buffer::upload(const void* source, std::size_t bytes) const {
  // From pageable memory cudaMemcpy returns once it has staged the bytes, and our streams do not
  // wait for the legacy stream (CUDA Runtime API, "API synchronization behavior").
  check_cuda(cudaMemcpy(data_, source, bytes, cudaMemcpyHostToDevice), "copy to the GPU");
  check_cuda(cudaStreamSynchronize(cudaStreamLegacy), "copy to the GPU");
}
void Buffer::download(void* target, std::size_t bytes) const {
  check_cuda(cudaMemcpy(target, data_, bytes, cudaMemcpyDeviceToHost), "copy from the GPU");
}

void Graph::begin(const Stream& stream) {
  check_cuda(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeThreadLocal),
             "cudaStreamBeginCapture");
}
void Graph::abandon(const Stream& stream) {
  cudaGraph_t graph = nullptr;
  cudaStreamEndCapture(stream.get(), &graph);
  if (graph != nullptr) log_failure(cudaGraphDestroy(graph), "cudaGraphDestroy");
  cudaGetLastError();
}
void Graph::end(const Stream& stream) {
  cudaGraph_t graph = nullptr;
  check_cuda(cudaStreamEndCapture(stream.get(), &graph), "cudaStreamEndCapture");
  const cudaError_t status = cudaGraphInstantiate(&exec_, graph, 0);
  log_failure(cudaGraphDestroy(graph), "cudaGraphDestroy");
  check_cuda(status, "cudaGraphInstantiate");
}
Graph::~Graph() {
  if (exec_ != nullptr) log_failure(cudaGraphExecDestroy(exec_), "cudaGraphExecDestroy");
}
void Graph::launch(const Stream& stream) const {
  check_cuda(cudaGraphLaunch(exec_, stream.get()), "cudaGraphLaunch");
}

}  // namespace moetune
