#include "cuda/cublas.hpp"

#include <dlfcn.h>
#include <fmt/format.h>
#include <library_types.h>
#include <spdlog/spdlog.h>

#include "core/error.hpp"

namespace moetune {
namespace {

// Its header is no part of the toolkit's runtime, so what is used of it is declared here, as
// cublas_api.h of CUDA 12 and 13 does. Its enumerations are passed as int.
constexpr int kSuccess = 0;
constexpr int kNoTranspose = 0;
constexpr int kTranspose = 1;
constexpr int kCompute32f = 68;
constexpr int kDefaultAlgorithm = -1;

// What NVIDIA advises for sm_90; without one of its own, a captured call would allocate.
constexpr std::size_t kWorkspaceBytes = 32 << 20;

struct Library {
  int (*create)(void** handle);
  int (*destroy)(void* handle);
  int (*set_stream)(void* handle, cudaStream_t stream);
  int (*set_workspace)(void* handle, void* workspace, std::size_t bytes);
  int (*get_version)(void* handle, int* version);
  const char* (*status_string)(int status);
  int (*gemm_ex)(void* handle, int transpose_a, int transpose_b, int m, int n, int k,
                 const void* alpha, const void* a, cudaDataType a_type, int lda, const void* b,
                 cudaDataType b_type, int ldb, const void* beta, void* c, cudaDataType c_type,
                 int ldc, int compute_type, int algorithm);
};

void* open_library() {
  std::string reason;
  // Along LD_LIBRARY_PATH, the program's own search path, and the system's.
  for (const char* name : {"libcublas.so.13", "libcublas.so.12"}) {
    if (void* handle = ::dlopen(name, RTLD_NOW)) return handle;
    const char* message = ::dlerror();
    if (reason.empty() && message != nullptr) reason = message;
  }
  throw Error(ErrorKind::device,
              fmt::format("cannot load cuBLAS ({}): install it with the CUDA toolkit, or add the "
                          "directory of libcublas to LD_LIBRARY_PATH",
                          reason));
}

template <typename Function>
void bind(void* handle, const char* name, Function& function) {
  function = reinterpret_cast<Function>(::dlsym(handle, name));
  if (function == nullptr) {
    throw Error(ErrorKind::device,
                fmt::format("libcublas has no {}: install cuBLAS of CUDA 12 or 13", name));
  }
}

const Library& cublas() {
  static const Library library = [] {
    void* handle = open_library();  // stays loaded until the process ends
    Library loaded{};
    bind(handle, "cublasCreate_v2", loaded.create);
    bind(handle, "cublasDestroy_v2", loaded.destroy);
    bind(handle, "cublasSetStream_v2", loaded.set_stream);
    bind(handle, "cublasSetWorkspace_v2", loaded.set_workspace);
    bind(handle, "cublasGetVersion_v2", loaded.get_version);
    bind(handle, "cublasGetStatusString", loaded.status_string);
    bind(handle, "cublasGemmEx", loaded.gemm_ex);
    return loaded;
  }();
  return library;
}

void check(int status, const char* what) {
  if (status == kSuccess) return;
  throw Error(ErrorKind::device, fmt::format("{}: {}", what, cublas().status_string(status)));
}

}  // namespace

Cublas::Cublas(const Stream& stream) {
  cublas();  // a missing library is told before memory is taken
  workspace_ = Buffer(kWorkspaceBytes);
  check(cublas().create(&handle_), "cublasCreate");
  try {
    check(cublas().set_stream(handle_, stream.get()), "cublasSetStream");
    // After the stream: setting that one drops the workspace.
    check(cublas().set_workspace(handle_, workspace_.get(), workspace_.size()),
          "cublasSetWorkspace");
  } catch (...) {
    cublas().destroy(handle_);
    throw;
  }
}

std::string Cublas::missing() {
  try {
    cublas();
    return "";
  } catch (const Error& error) {
    return error.what();
  }
}

Cublas::~Cublas() {
  if (cublas().destroy(handle_) != kSuccess) spdlog::debug("cublasDestroy failed");
}

std::string Cublas::version() const {
  int version = 0;
  check(cublas().get_version(handle_, &version), "cublasGetVersion");
  return fmt::format("{}.{}.{}", version / 10000, version / 100 % 100, version % 100);
}

void Cublas::gemm(const void* a, const void* w, void* out, std::int64_t rows, std::int64_t n,
                  std::int64_t k) const {
  const float one = 1.0F;
  const float zero = 0.0F;
  // cuBLAS is column-major: what lies here row by row is the transpose there.
  check(cublas().gemm_ex(handle_, kTranspose, kNoTranspose, static_cast<int>(n),
                         static_cast<int>(rows), static_cast<int>(k), &one, w, CUDA_R_16BF,
                         static_cast<int>(k), a, CUDA_R_16BF, static_cast<int>(k), &zero, out,
                         CUDA_R_16BF, static_cast<int>(n), kCompute32f, kDefaultAlgorithm),
        "cublasGemmEx");
}

}  // namespace moetune
