// The record that `moe-tune bench --out` keeps: the newest time of each layer on one GPU.
//
//   {"gpu", "driver", "commit", "command", "date", "rows": [{"model", "dtype", "num_tokens",
//    "layer_us", "p10_us", "p90_us", "rel_err", "source", "gemm1", "gemm2", "lookup", "routing",
//    "commit", "date"}, ...]}
//
// The head is the newest run's; a row's own commit and date say what made that row.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "report/bench_report.hpp"

namespace moetune {

// The record at `path`, or one without rows where there is no file. Throws Error(input), and leaves
// the file alone, when it is malformed, no such record, or of another GPU.
nlohmann::ordered_json read_record(const std::string& path, const BenchRun& run);

// Puts `row` in its place: model, dtype, token count and routing. Returns whether it did: a row
// without a good time has none, and one that is not measured never takes a measured one's.
bool merge_row(nlohmann::ordered_json& record, const BenchRun& run, const BenchRow& row);

// Makes the directory of `path`. Throws Error(io) when that fails or it may not be written.
void check_record_place(const std::string& path);

// Reads, merges and, where that changed anything, writes atomically. Throws as read_record() does,
// and Error(io). Returns what merge_row() does.
bool update_record(const std::string& path, const BenchRun& run, const BenchRow& row);

}  // namespace moetune
