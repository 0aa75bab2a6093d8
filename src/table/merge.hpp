// Joining tables of the same identity, such as those of shards that searched apart.
#pragma once

#include <set>
#include <span>
#include <string>

#include "table/table.hpp"

namespace moetune {

// The variants of all entries' plans.
std::set<std::string> variants_used(const Table& table);

// Why times of `a` and `b` must not stand in one table: "GPU: NVIDIA H200 and NVIDIA L40S"; "" when
// they may. The model's name is only a label, the driver and the small kernels only a note, and a
// variant that no entry uses may be another; but times under another routing are not comparable.
std::string why_not_mergeable(const Table& a, const Table& b);
// The same whatever their kernels.
std::string why_not_alike(const Table& a, const Table& b);

// Whether `a` is the better entry for a token count that both have: measured before recorded before
// predicted, the full timing protocol before less, then the better in `objective`, then the faster.
// A total order, so that nothing depends on which is met first.
bool is_better_entry(const TableEntry& a, const TableEntry& b,
                     Objective objective = Objective::time);

// One table of all; the same whatever their order. Date, command, seed, driver and the hashes of
// kernels that no entry uses are those of the newest. Complete when every token count of an
// incomplete table is also in a complete one. There is at least one table, and each two are
// mergeable.
Table merge_tables(std::span<const Table> tables);

}  // namespace moetune
