// Records of the other benchmarks: as bench_record.hpp's, but with rows of one named kind.
#pragma once

#include <initializer_list>
#include <nlohmann/json.hpp>
#include <string>

#include "report/bench_report.hpp"

namespace moetune {

// The record at `path`, or one without rows. Throws Error(input) as read_record() does, and for one
// whose rows are not of `kind` (their "kind").
nlohmann::ordered_json read_rows(const std::string& path, const BenchRun& run,
                                 const std::string& kind);

// Puts `row` where a row with the same values of `key` is, else at the end, and writes atomically;
// the head becomes the run's. `row` has a "kind", "model", "dtype", "num_tokens" and "source".
// Throws as read_rows() does, and Error(io).
void update_rows(const std::string& path, const BenchRun& run, nlohmann::ordered_json row,
                 std::initializer_list<const char*> key);

}  // namespace moetune
