#include <algorithm>

#include "table/table.hpp"

namespace moetune {

std::vector<std::int64_t> nearest_keys(std::vector<std::int64_t> keys, std::int64_t num_tokens) {
  const auto ratio = [num_tokens](std::int64_t key) {
    const auto a = static_cast<double>(key);
    const auto b = static_cast<double>(std::max<std::int64_t>(num_tokens, 1));
    return a > b ? a / b : b / a;
  };
  std::sort(keys.begin(), keys.end(), [&](std::int64_t a, std::int64_t b) {
    return std::pair(ratio(a), -a) < std::pair(ratio(b), -b);
  });
  return keys;
}

Lookup look_up(const Table& table, std::int64_t num_tokens) {
  if (table.entries.empty()) return {};
  std::vector<std::int64_t> keys;
  for (const auto& [key, entry] : table.entries) keys.push_back(key);
  const std::int64_t key = nearest_keys(std::move(keys), num_tokens).front();
  const LookupStep step = key == num_tokens ? LookupStep::exact : LookupStep::nearest;
  return {step, key, &table.entries.at(key)};
}

}  // namespace moetune
