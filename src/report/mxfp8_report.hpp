// What quantising to MXFP8 takes, beside a copy of as many bytes. Pure functions.
#pragma once

#include <nlohmann/json.hpp>
#include <span>
#include <string>

#include "report/bench_report.hpp"

namespace moetune {

// One tensor of a layer, bf16 [rows, columns].
struct Mxfp8Row {
  std::string model;
  std::int64_t num_tokens = 0;
  std::string tensor;  // "x", "activation"
  std::int64_t rows = 0, columns = 0;
  Timing timing;       // of the quantise kernel
  Timing copy;         // of a copy that moves as many bytes
  double rel_err = 0;  // ||dequantised - in|| / ||in||
};

// Bytes read and written: values, e4m3 values, and a scale for 32 of them.
double mxfp8_bytes(const Mxfp8Row& row);

std::string mxfp8_text(const BenchRun& run, std::span<const Mxfp8Row> rows);
nlohmann::ordered_json mxfp8_json(const BenchRun& run, std::span<const Mxfp8Row> rows);
// One row of that: what a record keeps.
nlohmann::ordered_json mxfp8_row_json(const BenchRun& run, const Mxfp8Row& row);

}  // namespace moetune
