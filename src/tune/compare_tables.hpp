// Whether two independent tunings of the same thing came to the same.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "table/table.hpp"

namespace moetune {

enum class Agreement {
  same,       // the same plan
  tie,        // both declare a plan as no worse than their winner, or the times are that close
  different,  // neither
  missing     // only one of the tables has the token count
};

struct ComparedEntry {
  std::int64_t num_tokens = 0;
  Agreement agreement = Agreement::missing;
  bool is_declared = false;  // some plan is the winner, or declared its tie, in both
  TableEntry first, second;  // without a plan where the table has none
  double ratio() const;      // of the times, second to first; 0 when one is missing
};

struct TableComparison {
  std::vector<ComparedEntry> entries;  // ascending token counts
  std::size_t count(Agreement agreement) const;
  double share() const;  // of entries that are the same or tied, 0..1; 0 without entries
};

// Share of entries that must agree for a tuning to count as reproducible.
inline constexpr double kReproducible = 0.95;

// Throws Error(input) when the tables are of different GPUs, shapes, kernels, routings, ...
TableComparison compare_tables(const Table& first, const Table& second);

std::string comparison_text(const TableComparison& comparison);
nlohmann::ordered_json comparison_json(const TableComparison& comparison);

}  // namespace moetune
