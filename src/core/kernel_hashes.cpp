#include "core/kernel_hashes.hpp"

namespace moetune {

std::set<std::string> variants_of(const Plan& plan) {
  std::set<std::string> names;
  for (const Step& step : plan.steps) names.insert(step.variant);
  return names;
}

std::vector<std::string> changed_variants(const std::set<std::string>& names, const KernelHashes& a,
                                          const KernelHashes& b) {
  std::vector<std::string> changed;
  for (const std::string& name : names) {
    const auto one = a.variants.find(name);
    const auto other = b.variants.find(name);
    const bool known = one != a.variants.end() && other != b.variants.end();
    if (!known || one->second != other->second) changed.push_back(name);
  }
  return changed;
}

std::vector<std::string> conflicting_variants(const std::set<std::string>& names,
                                              const KernelHashes& a, const KernelHashes& b) {
  std::set<std::string> in_both;
  for (const std::string& name : names)
    if (a.variants.contains(name) && b.variants.contains(name)) in_both.insert(name);
  return changed_variants(in_both, a, b);
}

}  // namespace moetune
