#include "report/mxfp8_report.hpp"

#include <fmt/format.h>

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

}  // namespace

double mxfp8_bytes(const Mxfp8Row& row) {
  return static_cast<double>(row.rows) * static_cast<double>(row.columns) *
         (2 + 1 + 1.0 / kMxBlock);
}

std::string mxfp8_text(const BenchRun& run, std::span<const Mxfp8Row> rows) {
  TextTable table({"<model", "tokens", "<tensor", "rows", "columns", "median us", "GB/s",
                   "copy GB/s", "% of copy", "rel_err"});
  for (const Mxfp8Row& row : rows) {
    table.add(
        {row.model, fmt::format("{}", row.num_tokens), row.tensor, fmt::format("{}", row.rows),
         fmt::format("{}", row.columns), fmt::format("{:.2f}", row.timing.median_us),
         fmt::format("{:.0f}", gbps(row, row.timing)), fmt::format("{:.0f}", gbps(row, row.copy)),
         fmt::format("{:.1f}", 100 * share_of_copy(row)), fmt::format("{:.5f}", row.rel_err)});
  }
  return fmt::format(
      "{}, driver {}, seed {}\nquantising to MXFP8: e4m3 with an e8m0 scale, rounded up, for 32 "
      "values\ncopy: of as many bytes, read and written\n\n{}",
      run.gpu.name, run.gpu.driver, run.seed, table.text());
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

Json mxfp8_json(const BenchRun& run, std::span<const Mxfp8Row> rows) {
  Json json = {{"gpu", run.gpu.name},    {"driver", run.gpu.driver}, {"commit", run.commit},
               {"command", run.command}, {"date", run.date},         {"seed", run.seed},
               {"rows", Json::array()}};
  for (const Mxfp8Row& row : rows) json["rows"].push_back(mxfp8_row_json(run, row));
  return json;
}

}  // namespace moetune
