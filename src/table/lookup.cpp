#include <iterator>

#include "table/table.hpp"

namespace moetune {

Lookup look_up(const Table& table, std::int64_t num_tokens) {
  if (table.entries.empty()) return {};
  const auto above = table.entries.lower_bound(num_tokens);
  if (above != table.entries.end() && above->first == num_tokens)
    return {LookupStep::exact, num_tokens, &above->second};
  auto found = above;
  if (above == table.entries.end()) {
    found = std::prev(above);
  } else if (above != table.entries.begin()) {
    const auto below = std::prev(above);
    if (num_tokens - below->first <= above->first - num_tokens) found = below;
  }
  return {LookupStep::nearest, found->first, &found->second};
}

}  // namespace moetune
