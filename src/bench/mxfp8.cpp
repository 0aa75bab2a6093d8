#include "bench/mxfp8.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <vector>

#include "bench/levels.hpp"
#include "core/error.hpp"
#include "core/mxfp8.hpp"
#include "kernels/journey/mxfp8_config.hpp"
#include "kernels/support/support.hpp"
#include "measure/timing.hpp"

namespace moetune {
namespace {

constexpr int kNumCalls = 8;  // in a graph, each of other values while they fit
constexpr double kMostInputBytes = 4e9;
constexpr std::int64_t kCheckedValues = 1 << 19;  // at either end
// As in kernels/journey/mxfp8.cu.
constexpr std::int64_t kThreads = 256;
constexpr std::int64_t kBlockValues = kThreads * 8 * 4;

std::unique_ptr<Module> load(Compiler& compiler, const KernelSource& source) {
  const auto cubin = compiler.get(source);
  if (!cubin->ok()) {
    throw Error(ErrorKind::failed, fmt::format("{}: {}", source.file, cubin->error));
  }
  return std::make_unique<Module>(*cubin);
}

std::size_t bytes(std::int64_t count) {
  return static_cast<std::size_t>(count);
}

std::vector<std::uint8_t> download(const Buffer& buffer, std::int64_t first, std::int64_t count) {
  std::vector<std::uint8_t> host(bytes(count));
  check_cuda(cudaMemcpy(host.data(), buffer.get<std::uint8_t>() + first, host.size(),
                        cudaMemcpyDeviceToHost),
             "copy from the GPU");
  return host;
}

std::size_t first_difference(const std::vector<std::uint8_t>& a,
                             const std::vector<std::uint8_t>& b) {
  return static_cast<std::size_t>(std::mismatch(a.begin(), a.end(), b.begin()).first - a.begin());
}

}  // namespace

KernelSource mxfp8_kernels(std::int64_t columns) {
  return {"journey/mxfp8.cu", {fmt::format("moetune_journey::quantise_mxfp8<{}>", columns)}, {}};
}

void check_mxfp8(const Gpu& gpu) {
  if (gpu.cc() >= 89) return;
  throw Error(ErrorKind::device,
              fmt::format("{} converts no e4m3; MXFP8 takes sm_89 or later", gpu.name));
}

Mxfp8Quantiser::Mxfp8Quantiser(std::int64_t columns, Compiler& compiler)
    : columns_(columns), scale_pitch_(mx_scale_pitch(static_cast<int>(columns))) {
  const KernelSource source = mxfp8_kernels(columns);
  module_ = load(compiler, source);
  kernel_ = module_->kernel(source.expressions.front());
}

void Mxfp8Quantiser::enqueue(const Stream& stream, const void* in, std::int64_t rows, void* out,
                             void* scales, bool overlap) const {
  const std::int64_t count = rows * columns_;
  const auto grid = static_cast<unsigned>((count + kBlockValues - 1) / kBlockValues);
  launch(stream, kernel_, LaunchShape{dim3(grid), static_cast<unsigned>(kThreads), 0, overlap}, in,
         static_cast<long long>(count), out, scales);
}

double Mxfp8Quantiser::check(const Buffer& in, const Buffer& out, const Buffer& scales,
                             std::int64_t first_row, std::int64_t num_rows) const {
  std::vector<std::uint16_t> raw(bytes(num_rows * columns_));
  check_cuda(cudaMemcpy(raw.data(), in.get<std::uint16_t>() + first_row * columns_, raw.size() * 2,
                        cudaMemcpyDeviceToHost),
             "copy from the GPU");
  std::vector<float> values(raw.size());
  std::transform(raw.begin(), raw.end(), values.begin(), [](std::uint16_t bf16) {
    return std::bit_cast<float>(static_cast<std::uint32_t>(bf16) << 16);
  });
  const Mxfp8 want = quantise_mxfp8(values);
  std::vector<std::uint8_t> padded;
  const auto blocks = static_cast<std::ptrdiff_t>(columns_ / kMxBlock);
  for (std::int64_t row = 0; row < num_rows; ++row) {
    const auto begin = want.scales.begin() + row * blocks;
    padded.insert(padded.end(), begin, begin + blocks);
    padded.resize(bytes((row + 1) * scale_pitch_));
  }
  const Mxfp8 got{download(out, first_row * columns_, num_rows * columns_),
                  download(scales, first_row * scale_pitch_, num_rows * scale_pitch_)};
  if (got.scales != padded) {
    const std::size_t at = first_difference(got.scales, padded);
    throw Error(ErrorKind::failed, fmt::format("wrong result: scale {} is {}, not {}", at,
                                               got.scales[at], padded[at]));
  }
  if (got.values != want.values) {
    const std::size_t at = first_difference(got.values, want.values);
    throw Error(ErrorKind::failed, fmt::format("wrong result: value {} is {:#04x}, not {:#04x}", at,
                                               got.values[at], want.values[at]));
  }
  return mxfp8_error({got.values, want.scales}, values);
}

Mxfp8Bench::Mxfp8Bench(const Gpu& gpu, const std::string& cache_dir)
    : compiler_(arch_name(gpu), cache_dir, 1, embedded_journey()) {
  check_mxfp8(gpu);
  Compiler compiler(arch_name(gpu), cache_dir, 1);
  judge_ = load(compiler, reference_kernels());
}

void Mxfp8Bench::measure(Mxfp8Row& row, std::uint64_t seed) {
  if (row.columns % kMxBlock != 0) {
    throw Error(
        ErrorKind::input,
        fmt::format("{} of {}: rows of {} values are no multiple of {}, for which MXFP8 has "
                    "a scale",
                    row.tensor, row.model, row.columns, kMxBlock));
  }
  const std::int64_t count = row.rows * row.columns;
  const int num_slices = std::clamp(
      static_cast<int>(kMostInputBytes / (2 * static_cast<double>(count))), 1, kNumCalls);
  const auto copy_bytes = static_cast<std::int64_t>(mxfp8_bytes(row) / 2);
  const Buffer in(bytes(2 * count * num_slices));
  const Buffer out(bytes(count * num_slices));
  const Mxfp8Quantiser quantiser(row.columns, compiler_);
  const std::int64_t num_scales = row.rows * quantiser.scale_pitch();
  const Buffer scales(bytes(num_scales * num_slices));
  const Buffer copied(bytes(copy_bytes * num_slices));
  const long long num_values = count * num_slices;
  launch(stream_, judge_->kernel("moetune_reference::fill_normal_bf16"),
         LaunchShape{dim3(4096), 256}, in.get(), num_values, 1.0F,
         static_cast<unsigned long long>(seed));
  for (const Buffer* buffer : {&out, &scales})
    check_cuda(cudaMemsetAsync(buffer->get(), 0xff, buffer->size(), stream_.get()), "memset");

  const auto quantise_slice = [&](int call) {
    const std::int64_t slice = call % num_slices;
    quantiser.enqueue(stream_, in.get<std::uint16_t>() + slice * count, row.rows,
                      out.get<std::uint8_t>() + slice * count,
                      scales.get<std::uint8_t>() + slice * num_scales);
  };
  const auto copy_slice = [&](int call) {
    const std::int64_t slice = call % num_slices;
    check_cuda(
        cudaMemcpyAsync(copied.get<char>() + slice * copy_bytes, in.get<char>() + slice * 2 * count,
                        bytes(copy_bytes), cudaMemcpyDeviceToDevice, stream_.get()),
        "copy on the GPU");
  };
  quantise_slice(0);
  stream_.synchronize();
  const std::int64_t checked = std::min(row.rows, (kCheckedValues + row.columns - 1) / row.columns);
  row.rel_err = quantiser.check(in, out, scales, 0, checked);
  quantiser.check(in, out, scales, row.rows - checked, checked);

  const auto time = [&](const auto& call_slice) {
    const Graph graph(stream_, [&] {
      for (int call = 0; call < kNumCalls; ++call) call_slice(call);
    });
    bool stopped = false;
    return time_graph(graph, stream_, {.num_calls = kNumCalls}, stopped);
  };
  row.timing = time(quantise_slice);
  row.copy = time(copy_slice);
}

}  // namespace moetune
