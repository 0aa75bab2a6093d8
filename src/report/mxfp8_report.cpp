#include "report/mxfp8_report.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <set>

#include "core/mxfp8.hpp"
#include "report/summary.hpp"
#include "report/text_table.hpp"

namespace moetune {
namespace {

using Json = nlohmann::ordered_json;

double gbps(const Mxfp8Row& row, const Timing& timing) {
  return timing.median_us > 0 ? mxfp8_bytes(row) / timing.median_us / 1e3 : 0;
}

double share_of_copy(const Mxfp8Row& row) {
  return row.timing.median_us > 0 ? row.copy.median_us / row.timing.median_us : 0;
}

double gbps(const Mxfp8Product& product) {
  return product.timing.median_us > 0 ? product.bytes / product.timing.median_us / 1e3 : 0;
}
double tflops(const Mxfp8Product& product) {
  return product.timing.median_us > 0 ? product.flops / product.timing.median_us / 1e6 : 0;
}

}  // namespace

double mxfp8_bytes(const Mxfp8Row& row) {
  return static_cast<double>(row.rows) * static_cast<double>(row.columns) *
         (2 + 1 + 1.0 / kMxBlock);
}

std::string mxfp8_text(const BenchRun& run, std::span<const Mxfp8Row> rows,
                       std::span<const Mxfp8Product> products) {
  TextTable table({"<model", "tokens", "<tensor", "rows", "columns", "median us", "GB/s",
                   "copy GB/s", "% of copy", "rel_err"});
  for (const Mxfp8Row& row : rows) {
    table.add(
        {row.model, fmt::format("{}", row.num_tokens), row.tensor, fmt::format("{}", row.rows),
         fmt::format("{}", row.columns), fmt::format("{:.2f}", row.timing.median_us),
         fmt::format("{:.0f}", gbps(row, row.timing)), fmt::format("{:.0f}", gbps(row, row.copy)),
         fmt::format("{:.1f}", 100 * share_of_copy(row)), fmt::format("{:.5f}", row.rel_err)});
  }
  std::string text = fmt::format(
      "{}, driver {}, {} routing, seed {}\nquantising to MXFP8: e4m3 with an e8m0 scale, rounded "
      "up, for 32 values\ncopy: of as many bytes, read and written\n\n{}",
      run.gpu.name, run.gpu.driver, to_string(run.routing), run.seed, table.text());
  if (products.empty()) return text;
  std::set<std::string> paths;
  for (const Mxfp8Product& product : products) paths.insert(product.path);
  TextTable timed({"<model", "tokens", "<product", "median us", "TFLOP/s", "GB/s", "rel_err",
                   "vs bf16", "points", "wrong", "<best point"});
  for (const Mxfp8Product& product : products) {
    const bool layer = product.what == "layer";
    timed.add({product.model, fmt::format("{}", product.num_tokens), product.what,
               fmt::format("{:.1f}", product.timing.median_us),
               fmt::format("{:.1f}", tflops(product)), fmt::format("{:.0f}", gbps(product)),
               fmt::format("{:.5f}", product.rel_err),
               layer ? fmt::format("{:.5f}", product.bf16_err) : "-",
               layer ? "-" : fmt::format("{}", product.num_points),
               layer ? "-" : fmt::format("{}", product.num_wrong), layer ? "-" : product.point});
  }
  return text + fmt::format(
                    "\nproducts of MXFP8 values: {}\ngemm1: with SwiGLU; layer: sort, quantising x "
                    "and the activation, both GEMMs, weighted sum\nrel_err: against fp32 products "
                    "of the same MXFP8 values; vs bf16: against the layer before quantisation\n\n"
                    "{}",
                    fmt::join(paths, "; "), timed.text());
}

Json mxfp8_row_json(const BenchRun& run, const Mxfp8Row& row) {
  return {{"kind", "mxfp8"},
          {"model", row.model},
          {"dtype", "mxfp8"},
          {"num_tokens", row.num_tokens},
          {"source", to_string(Source::measured)},
          {"tensor", row.tensor},
          {"rows", row.rows},
          {"columns", row.columns},
          {"median_us", row.timing.median_us},
          {"p10_us", row.timing.p10_us},
          {"p90_us", row.timing.p90_us},
          {"gbps", positive_or_null(gbps(row, row.timing))},
          {"copy_gbps", positive_or_null(gbps(row, row.copy))},
          {"share_of_copy", positive_or_null(share_of_copy(row))},
          {"rel_err", row.rel_err},
          {"command", run.command},
          {"commit", run.commit},
          {"date", run.date}};
}

Json mxfp8_row_json(const BenchRun& run, const Mxfp8Product& product) {
  const bool layer = product.what == "layer";
  return {{"kind", "mxfp8"},
          {"model", product.model},
          {"dtype", "mxfp8"},
          {"num_tokens", product.num_tokens},
          {"source", to_string(Source::measured)},
          {"product", product.what},
          {"path", product.path},
          {"routing", to_string(run.routing)},
          {"point", layer ? Json(nullptr) : Json(product.point)},
          {"num_points", layer ? Json(nullptr) : Json(product.num_points)},
          {"num_wrong", layer ? Json(nullptr) : Json(product.num_wrong)},
          {"median_us", product.timing.median_us},
          {"p10_us", product.timing.p10_us},
          {"p90_us", product.timing.p90_us},
          {"tflops", positive_or_null(tflops(product))},
          {"gbps", positive_or_null(gbps(product))},
          {"rel_err", product.rel_err},
          {"bf16_err", layer ? Json(product.bf16_err) : Json(nullptr)},
          {"command", run.command},
          {"commit", run.commit},
          {"date", run.date}};
}

Json mxfp8_json(const BenchRun& run, std::span<const Mxfp8Row> rows,
                std::span<const Mxfp8Product> products) {
  Json json = run_json(run);
  json["seed"] = run.seed;
  for (const Mxfp8Row& row : rows) json["rows"].push_back(mxfp8_row_json(run, row));
  for (const Mxfp8Product& product : products) json["rows"].push_back(mxfp8_row_json(run, product));
  return json;
}

}  // namespace moetune
