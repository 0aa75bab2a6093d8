// By hashes of the kernels' sources it is known whether a time is of the kernels that are here.
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "core/trial.hpp"

namespace moetune {

struct KernelHashes {
  std::map<std::string, std::string> variants;  // of a variant's own sources, by its name
  std::string small_kernels;                    // of the kernels around the GEMMs
};

// The variants of a plan's steps, each once.
std::set<std::string> variants_of(const Plan& plan);

// Those of `names` whose sources are not known to be the same in both: what is stale.
std::vector<std::string> changed_variants(const std::set<std::string>& names, const KernelHashes& a,
                                          const KernelHashes& b);

// Those of `names` that both know and have different sources of: what cannot stand in one table.
std::vector<std::string> conflicting_variants(const std::set<std::string>& names,
                                              const KernelHashes& a, const KernelHashes& b);

}  // namespace moetune
