// The MXFP8 quantise kernel: compared bit by bit with the definition on the host, and timed.
#pragma once

#include <memory>
#include <string>

#include "cuda/launch.hpp"
#include "report/mxfp8_report.hpp"

namespace moetune {

KernelSource mxfp8_kernels(std::int64_t columns);  // sm_89 and later; a multiple of 32

// Throws Error(device) on a GPU that has no e4m3.
void check_mxfp8(const Gpu& gpu);

// Quantises rows of one length: bf16 [rows, columns] to e4m3 values and e8m0 scales
// [rows, scale_pitch()], padded with zeros.
class Mxfp8Quantiser {
 public:
  // `compiler` is of embedded_journey()'s files. Throws Error(failed) for a kernel that does not
  // compile.
  Mxfp8Quantiser(std::int64_t columns, Compiler& compiler);

  std::int64_t scale_pitch() const { return scale_pitch_; }
  // `overlap` as in LaunchShape.
  void enqueue(const Stream& stream, const void* in, std::int64_t rows, void* out, void* scales,
               bool overlap = false) const;
  // Compares `num_rows` rows from `first_row` on with the host's; returns their error. Throws
  // Error(failed) naming the first difference. The stream has been waited for.
  double check(const Buffer& in, const Buffer& out, const Buffer& scales, std::int64_t first_row,
               std::int64_t num_rows) const;

 private:
  std::int64_t columns_;
  std::int64_t scale_pitch_;
  std::unique_ptr<Module> module_;
  cudaKernel_t kernel_ = nullptr;
};

class Mxfp8Bench {
 public:
  // Throws Error(device) on a GPU that has no e4m3, and Error(failed) for a kernel that does not
  // compile.
  Mxfp8Bench(const Gpu& gpu, const std::string& cache_dir);

  // Quantises normal numbers [row.rows, row.columns]; fills timing, copy and rel_err. Throws
  // Error(input) for rows that are no multiple of 32 long, Error(failed) for a wrong result, and
  // Error(device) where memory is missing.
  void measure(Mxfp8Row& row, std::uint64_t seed);

 private:
  Stream stream_;
  Compiler compiler_;  // of the quantise kernels
  std::unique_ptr<Module> judge_;
};

}  // namespace moetune
