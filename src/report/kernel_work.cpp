#include "report/kernel_work.hpp"

#include <algorithm>
#include <cmath>

#include "core/error.hpp"
#include "kernels/expected.hpp"
#include "kernels/support/support.hpp"

namespace moetune {
namespace {

double as_double(std::int64_t value) {
  return static_cast<double>(value);
}

// With their scales.
double value_bytes(double count, bool fp8) {
  return fp8 ? count * (1 + 4.0 / kScaleGroup) : 2 * count;
}
double weight_value_bytes(double count, bool fp8) {
  return fp8 ? count * (1 + 4.0 / (kScaleGroup * kScaleGroup)) : 2 * count;
}

class Layout {
 public:
  Layout(const Gpu& gpu, const Problem& problem, const Plan& plan,
         std::span<const std::int64_t> expert_rows)
      : gpu_(gpu), expert_rows_(expert_rows) {
    const Step* const steps[] = {plan.find("gemm1"), plan.find("gemm2")};
    if (steps[0] == nullptr || steps[1] == nullptr)
      throw Error(ErrorKind::failed, "the plan lacks a GEMM");
    first_ = find_variant(steps[0]->variant).launch(problem, Stage::gemm1, steps[0]->point);
    second_ = find_variant(steps[1]->variant).launch(problem, Stage::gemm2, steps[1]->point);
    const LayerShape& s = problem.shape;
    num_slots_ = problem.num_tokens * s.top_k;
    slots_ = as_double(num_slots_);
    hidden_ = s.hidden_size;
    intermediate_ = s.intermediate_size;
    x_ = as_double(problem.num_tokens * s.hidden_size);
    const auto active = std::count_if(expert_rows.begin(), expert_rows.end(),
                                      [](std::int64_t rows) { return rows > 0; });
    weights_ = as_double(active) * as_double(hidden_ * intermediate_);
  }

  std::vector<KernelWork> works() const {
    const double activations = slots_ * as_double(intermediate_);
    if (second_.whole_layer) {
      return {gemms("layer", "moe_layer", 2 * x_ + 4 * slots_ + 2 * x_)};
    }
    std::vector<KernelWork> works = sorts();
    if (second_.joins) {
      // The activation may stay in L2.
      works.push_back(gemms("GEMM1 + GEMM2", "moe_joined", value_bytes(x_, first_.fp8) + 2 * x_));
    } else {
      const double packed = value_bytes(slots_ * as_double(hidden_), first_.fp8);
      if (!first_.gathers) works.push_back(small("pack x", "activate", 2 * x_ + packed));
      const bool halves = first_.output == Output::swiglu || first_.output == Output::swiglu_fp8;
      const double made = halves ? value_bytes(activations, first_.output == Output::swiglu_fp8)
                                 : partial_bytes(first_, 2 * activations);
      works.push_back(gemm("GEMM1", first_, first_.gathers ? value_bytes(x_, first_.fp8) : packed,
                           2, made, halves ? intermediate_ : 2 * intermediate_));
      const double wanted = value_bytes(activations, second_.fp8);
      if (first_.output != Output::swiglu_fp8 && !(first_.output == Output::swiglu && !second_.fp8))
        works.push_back(small(halves        ? "quantise"
                              : second_.fp8 ? "activation, quantise"
                                            : "activation",
                              "activate", made + wanted));
      const double summed = second_.sums() ? 2 * x_ : partial_bytes(second_, y());
      works.push_back(gemm("GEMM2", second_, wanted, 1, summed, hidden_));
    }
    if (!second_.sums())
      works.push_back(small("combine", "combine", partial_bytes(second_, y()) + 2 * x_));
    return works;
  }

 private:
  double y() const { return slots_ * as_double(hidden_); }

  static KernelWork small(std::string step, std::string kernel, double bytes) {
    KernelWork work;
    work.step = std::move(step);
    work.kernel = std::move(kernel);
    work.bytes = bytes;
    return work;
  }

  static double partial_bytes(const GemmLaunch& launch, double count) {
    return launch.output == Output::partial ? 4 * count * launch.split_k : 2 * count;
  }

  std::vector<KernelWork> sorts() const {
    const bool in_one = num_slots_ <= kSmallSortSlots;
    const bool quantises = first_.fp8 && first_.gathers;
    KernelWork sort = small("sort", in_one ? "sort_small" : "sort_count", 4 * slots_);
    if (quantises) {
      sort.step += ", quantise x";
      sort.bytes += 2 * x_ + value_bytes(x_, true);
    }
    if (second_.sums()) {
      sort.step += ", clear";
      sort.bytes += 2 * x_;
    }
    if (in_one) {
      sort.bytes += 8 * slots_;
      return {sort};
    }
    return {sort, small("sort: place", "sort_place", 12 * slots_)};
  }

  // Tiles of a GEMM and the rows in them.
  void tile(KernelWork& work, const GemmLaunch& launch, std::int64_t columns) const {
    std::int64_t row_tiles = 0;
    for (const std::int64_t rows : expert_rows_) row_tiles += ceil_div(rows, launch.block_m);
    work.padding = as_double(row_tiles * launch.block_m) / slots_;
    const std::int64_t blocks = std::int64_t{launch.blocks_per_sm} * gpu_.num_sms / launch.cluster;
    if (blocks <= 0) return;
    const std::int64_t tiles = row_tiles * ceil_div(columns, launch.tile_columns);
    work.rounds_full = as_double(tiles) / as_double(ceil_div(tiles, blocks) * blocks);
  }

  // Of both weight matrices of a gate/up product (`parts` 2), or of w2 (1).
  KernelWork gemm(std::string step, const GemmLaunch& launch, double in_bytes, int parts,
                  double out_bytes, std::int64_t columns) const {
    KernelWork work =
        small(std::move(step), "moe_gemm",
              in_bytes + out_bytes + weight_value_bytes(parts * weights_, launch.fp8));
    work.flops = 2.0 * parts * slots_ * as_double(hidden_ * intermediate_);
    work.fp8 = launch.fp8;
    tile(work, launch, columns);
    return work;
  }

  KernelWork gemms(std::string step, std::string kernel, double bytes) const {
    KernelWork work = small(std::move(step), std::move(kernel),
                            bytes + weight_value_bytes(3 * weights_, second_.fp8));
    work.flops = 6 * slots_ * as_double(hidden_ * intermediate_);
    work.fp8 = second_.fp8;
    return work;
  }

  Gpu gpu_;
  std::span<const std::int64_t> expert_rows_;
  GemmLaunch first_, second_;
  std::int64_t num_slots_ = 0, hidden_ = 0, intermediate_ = 0;
  double slots_ = 0;
  double x_ = 0;        // values of x, and of the output
  double weights_ = 0;  // values of one of the three matrices, of the experts with rows
};

}  // namespace

std::vector<KernelWork> kernel_works(const Gpu& gpu, const Problem& problem, const Plan& plan,
                                     std::span<const std::int64_t> expert_rows) {
  return Layout(gpu, problem, plan, expert_rows).works();
}

}  // namespace moetune
