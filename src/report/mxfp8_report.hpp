// What quantising to MXFP8 takes, beside a copy of as many bytes, and the products of a layer of
// such values. Pure functions.
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

// A tuned grouped GEMM, or the whole layer with both.
struct Mxfp8Product {
  std::string model;
  std::int64_t num_tokens = 0;
  std::string what;    // "gemm1", "gemm2", "layer"
  std::string path;    // how the GPU multiplies
  std::string point;   // the best: "BLOCK_SIZE_M=64,..."; empty for a layer
  int num_points = 0;  // tried
  int num_wrong = 0;   // of them, whose result was wrong
  double flops = 0;
  double bytes = 0;  // that must move
  Timing timing;
  double rel_err = 0;   // against fp32 products of the same MXFP8 values
  double bf16_err = 0;  // layer: against the layer of the bf16 values
};

// Bytes read and written: values, e4m3 values, and a scale for 32 of them.
double mxfp8_bytes(const Mxfp8Row& row);

std::string mxfp8_text(const BenchRun& run, std::span<const Mxfp8Row> rows,
                       std::span<const Mxfp8Product> products);
nlohmann::ordered_json mxfp8_json(const BenchRun& run, std::span<const Mxfp8Row> rows,
                                  std::span<const Mxfp8Product> products);
// One row of that: what a record keeps.
nlohmann::ordered_json mxfp8_row_json(const BenchRun& run, const Mxfp8Row& row);
nlohmann::ordered_json mxfp8_row_json(const BenchRun& run, const Mxfp8Product& product);

}  // namespace moetune
