// Times the MXFP8 quantise kernel, after comparing it bit by bit with the definition on the host.
#pragma once

#include <memory>
#include <string>

#include "cuda/launch.hpp"
#include "report/mxfp8_report.hpp"

namespace moetune {

KernelSource mxfp8_kernels();  // sm_89 and later

class Mxfp8Bench {
 public:
  // Throws Error(device) on a GPU that has no e4m3, and Error(failed) for a kernel that does not
  // compile.
  Mxfp8Bench(const Gpu& gpu, const std::string& cache_dir);

  // Quantises normal numbers [row.rows, row.columns]; fills timing, copy and rel_err. Throws
  // Error(input) for rows that are no multiple of 32 long, Error(failed) for a wrong result, and
  // Error(device) where memory is missing.
  void measure(Mxfp8Row& row, std::uint64_t seed) const;

 private:
  void quantise(const void* in, std::int64_t count, void* out, void* scales) const;
  // Compares `count` values from `first` on with the host's; returns their error.
  double check(const Buffer& in, const Buffer& out, const Buffer& scales, std::int64_t first,
               std::int64_t count) const;

  Stream stream_;
  std::unique_ptr<Module> judge_;
  std::unique_ptr<Module> kernels_;
};

}  // namespace moetune
