#include "table/merge.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <set>
#include <tuple>

namespace moetune {
namespace {

auto age(const Table& table) {
  const TableIdentity& identity = table.identity;
  return std::tie(table.created, table.command, table.seed, identity.driver, identity.shape.model);
}

template <typename Value>
std::string differ(std::string_view what, const Value& one, const Value& other) {
  return fmt::format("{}: {} and {}", what, one, other);
}

}  // namespace

std::set<std::string> variants_used(const Table& table) {
  std::set<std::string> names;
  for (const auto& [num_tokens, entry] : table.entries) names.merge(variants_of(entry.plan));
  return names;
}

std::string why_not_mergeable(const Table& a, const Table& b) {
  if (std::string why = why_not_alike(a, b); !why.empty()) return why;
  std::set<std::string> used = variants_used(a);
  used.merge(variants_used(b));
  const KernelHashes& x = a.identity.kernels;
  const KernelHashes& y = b.identity.kernels;
  for (const std::string& name : conflicting_variants(used, x, y)) {
    return differ(fmt::format("kernels of {}", name), x.variants.at(name), y.variants.at(name));
  }
  return "";
}

std::string why_not_alike(const Table& a, const Table& b) {
  const TableIdentity& x = a.identity;
  const TableIdentity& y = b.identity;
  const auto sizes = [](const LayerShape& s) {
    return fmt::format("E={} K={} H={} I={}", s.num_experts, s.top_k, s.hidden_size,
                       s.intermediate_size);
  };
  if (x.gpu != y.gpu) return differ("GPU", x.gpu, y.gpu);
  if (x.arch != y.arch) return differ("architecture", x.arch, y.arch);
  if (x.nvrtc != y.nvrtc) return differ("NVRTC", x.nvrtc, y.nvrtc);
  if (x.dtype != y.dtype) return differ("dtype", to_string(x.dtype), to_string(y.dtype));
  if (sizes(x.shape) != sizes(y.shape)) return differ("shape", sizes(x.shape), sizes(y.shape));
  if (!(a.routing == b.routing)) {
    return differ("routing", to_string(a.routing), to_string(b.routing));
  }
  if (a.objective != b.objective) {
    return differ("objective", to_string(a.objective), to_string(b.objective));
  }
  return "";
}

bool is_better_entry(const TableEntry& a, const TableEntry& b, Objective objective) {
  // After the median only what makes the order total.
  const auto order = [objective](const TableEntry& e) {
    return std::tuple(e.source, e.timing.num_samples < kFullSamples,
                      cost(objective, e).value_or(std::numeric_limits<double>::infinity()),
                      e.timing.median_us, -e.timing.num_samples, e.plan.key(), e.timing.p10_us,
                      e.timing.p90_us, e.reference_us, e.rel_err, e.ties.size(), e.registers,
                      e.smem_bytes);
  };
  return order(a) < order(b);
}

Table merge_tables(std::span<const Table> tables) {
  Table merged = *std::max_element(tables.begin(), tables.end(),
                                   [](const Table& a, const Table& b) { return age(a) < age(b); });
  merged.entries.clear();
  for (const Table& table : tables) {
    // What its entries use has one hash wherever it is known.
    for (const std::string& name : variants_used(table)) {
      const auto known = table.identity.kernels.variants.find(name);
      if (known == table.identity.kernels.variants.end()) continue;
      merged.identity.kernels.variants.insert_or_assign(name, known->second);
    }
    merged.missing.insert(table.missing.begin(), table.missing.end());
    for (const auto& [num_tokens, entry] : table.entries) {
      const auto [found, is_new] = merged.entries.try_emplace(num_tokens, entry);
      if (!is_new && is_better_entry(entry, found->second, merged.objective)) found->second = entry;
    }
  }
  std::erase_if(merged.missing, [&](std::int64_t count) { return merged.entries.contains(count); });
  return merged;
}

}  // namespace moetune
