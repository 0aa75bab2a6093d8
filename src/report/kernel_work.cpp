#include "report/kernel_work.hpp"

#include <algorithm>

#include "kernels/expected.hpp"

namespace moetune {
namespace {

double as_double(std::int64_t value) {
  return static_cast<double>(value);
}

KernelWork kernel_work(const Work& work, std::span<const std::int64_t> expert_rows,
                       double num_active, double num_slots) {
  KernelWork kernel;
  kernel.step = work.step;
  kernel.kernel = work.kernel;
  kernel.bytes = work.bytes + num_active * work.weight_bytes_an_expert;
  kernel.flops = work.flops;
  kernel.fp8 = work.fp8;
  if (work.block_m == 0) return kernel;
  std::int64_t row_tiles = 0;
  for (const std::int64_t rows : expert_rows) row_tiles += ceil_div(rows, work.block_m);
  kernel.padding = as_double(row_tiles * work.block_m) / num_slots;
  if (work.tiles_at_once == 0) return kernel;
  const std::int64_t tiles = row_tiles * work.column_tiles;
  kernel.rounds_full =
      as_double(tiles) / as_double(ceil_div(tiles, work.tiles_at_once) * work.tiles_at_once);
  return kernel;
}

}  // namespace

std::vector<KernelWork> kernel_works(const LayerProgram& program,
                                     std::span<const std::int64_t> expert_rows) {
  const auto num_active = std::count_if(expert_rows.begin(), expert_rows.end(),
                                        [](std::int64_t rows) { return rows > 0; });
  const double num_slots = as_double(program.problem.num_tokens * program.problem.shape.top_k);
  std::vector<KernelWork> works;
  for (const Op& op : program.ops)
    works.push_back(kernel_work(op.work, expert_rows, as_double(num_active), num_slots));
  return works;
}

}  // namespace moetune
