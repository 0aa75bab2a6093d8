// Which plan `moe-tune bench` times at each token count.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/gpu.hpp"
#include "core/problem.hpp"
#include "core/trial.hpp"

namespace moetune {

struct PlanOptions {
  std::string tables_dir = "configs/tuned";  // DIR/<GPU>/<table_file_name>
  std::string table;                         // this file instead
  std::string gemm1, gemm2;                  // points given by hand: both or none
  bool reference = false;                    // the reference point
};

struct ChosenPlan {
  std::int64_t num_tokens = 0;
  Plan plan;
  // "given", "reference", or the look-up's step: "exact", "nearest 64", "fallback" (to the
  // reference point).
  std::string lookup;
  std::string defect;  // why the table's plan names no kernels; empty when it does
};

// One plan a token count. Without a table in `tables_dir` all fall back, and a warning says so; a
// table of other kernels is used with a warning. Throws Error(usage) for a point that is none, and
// Error(input) for a table that cannot be read or is of another GPU or layer.
std::vector<ChosenPlan> choose_plans(const PlanOptions& options, const Gpu& gpu,
                                     const Problem& problem,
                                     std::span<const std::int64_t> token_counts);

}  // namespace moetune
