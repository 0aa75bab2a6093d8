// Joining tables of the same identity, such as those of shards that searched apart.
#pragma once

#include <span>
#include <string>

#include "table/table.hpp"

namespace moetune {

// Why times of `a` and `b` must not stand in one table: "GPU: NVIDIA H200 and NVIDIA L40S"; "" when
// they may. The model's name is only a label and the driver only a note; but times under another
// routing are not comparable.
std::string why_not_mergeable(const Table& a, const Table& b);

// Whether `a` is the better entry for a token count that both have: measured before recorded before
// predicted, the full timing protocol before less, then the better in `objective`, then the faster.
// A total order, so that nothing depends on which is met first.
bool is_better_entry(const TableEntry& a, const TableEntry& b,
                     Objective objective = Objective::time);

// One table of all; the same whatever their order. Date, command, seed and driver are those of the
// newest. Complete when every token count of an incomplete table is also in a complete one. There
// is at least one table, and all are mergeable.
Table merge_tables(std::span<const Table> tables);

}  // namespace moetune
