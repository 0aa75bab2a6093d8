// Matrix products by cuBLAS, which is loaded when first asked for: the program needs none to start.
#pragma once

#include <cstdint>
#include <string>

#include "cuda/device.hpp"

namespace moetune {

class Cublas {
 public:
  // Loads libcublas and binds a handle, with its workspace, to `stream`, which must outlive this.
  // Throws Error(device) that names the remedy where there is none.
  explicit Cublas(const Stream& stream);
  ~Cublas();
  Cublas(const Cublas&) = delete;
  Cublas& operator=(const Cublas&) = delete;

  // Why no handle can be made here: what loading the library says; "" when it is there.
  static std::string missing();

  std::string version() const;  // "13.0.2"
  // Enqueues out[rows, n] = a[rows, k] w[n, k]^T: row-major bf16 without gaps, fp32 sums. May be
  // captured into a graph. Throws Error(device) with cuBLAS's reason.
  void gemm(const void* a, const void* w, void* out, std::int64_t rows, std::int64_t n,
            std::int64_t k) const;

 private:
  void* handle_ = nullptr;
  Buffer workspace_;
};

}  // namespace moetune
