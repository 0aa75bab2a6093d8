// The kernels around the GEMMs (sort, quantise, activation, weighted sum), and the judge's.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "core/problem.hpp"
#include "kernels/support/params.hpp"
#include "kernels/variant.hpp"

namespace moetune {

// What small_kernels.cu's `activate` reads (bf16 rows; bf16 gate and up halves; their fp32 partial
// sums) and writes.
enum class ActivateInput { bf16, gate_up, partial };
enum class ActivateOutput { bf16, fp8_block, fp8_tensor };
std::string activate_expression(ActivateInput input, ActivateOutput output);
// What one block sorts, in the only launch; more slots take two.
inline constexpr std::int64_t kSmallSortSlots = 2048;
// What further blocks of the sort's only or first launch do with x.
enum class Beside { nothing, copy, fp8_block, fp8_tensor };
std::string sort_expression(bool in_one_launch, Beside beside);

// The weighted sum of top_k rows a token.
std::string combine_expression(std::int64_t top_k);

// Packed rows' block scales lie by columns of 128: fp32 [columns / 128, rows].
std::int64_t packed_scale_bytes(std::int64_t rows, std::int64_t columns);

inline constexpr std::string_view kSmallKernelsFile = "support/small_kernels.cu";
// Every kernel of it that a problem needs, and the reference's.
KernelSource small_kernels(const Problem& problem);
KernelSource reference_kernels();
std::vector<KernelSource> support_sources(const Problem& problem);

}  // namespace moetune
