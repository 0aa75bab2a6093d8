#include "report/bench_record.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>

#include "core/error.hpp"
#include "core/text.hpp"
#include "report/summary.hpp"

namespace moetune {
namespace {

using Json = nlohmann::ordered_json;
namespace fs = std::filesystem;

// Digits beyond the clock's resolution only make changes harder to read.
double rounded_us(double time_us) {
  return std::round(time_us * 1e3) / 1e3;
}

bool is_text(const Json& json, const char* name) {
  return json.contains(name) && json.at(name).is_string();
}

void check_row(const Json& row, std::size_t number, const std::string& path) {
  const bool good = row.is_object() && is_text(row, "model") && is_text(row, "dtype") &&
                    row.contains("num_tokens") && row.at("num_tokens").is_number_integer() &&
                    is_text(row, "source") && (!row.contains("routing") || is_text(row, "routing"));
  if (good) return;
  throw Error(ErrorKind::input,
              fmt::format("{}: row {} lacks a model, dtype, num_tokens or source; mend the file or "
                          "give another --out",
                          path, number));
}

// Routing was not always said; it then was the default.
bool same_layer(const Json& a, const Json& b) {
  const std::string uniform = to_string(Routing{});
  return a.at("model") == b.at("model") && a.at("dtype") == b.at("dtype") &&
         a.at("num_tokens") == b.at("num_tokens") &&
         a.value("routing", uniform) == b.value("routing", uniform);
}

Json record_row(const BenchRun& run, const BenchRow& row) {
  const Trial& trial = row.trial;
  const bool measured = trial.source == Source::measured;
  return {{"model", row.model},
          {"dtype", to_string(row.problem.dtype)},
          {"num_tokens", row.problem.num_tokens},
          {"layer_us", rounded_us(trial.timing.median_us)},
          {"p10_us", rounded_us(trial.timing.p10_us)},
          {"p90_us", rounded_us(trial.timing.p90_us)},
          {"rel_err", measured ? Json(trial.rel_err) : Json(nullptr)},
          {"source", to_string(trial.source)},
          {"gemm1", step_text(trial.plan, "gemm1")},
          {"gemm2", step_text(trial.plan, "gemm2")},
          {"lookup", row.lookup},
          {"routing", to_string(run.routing)},
          {"commit", run.commit},
          {"date", run.date}};
}

}  // namespace

Json read_record(const std::string& path, const BenchRun& run) {
  std::error_code ignored;
  if (!fs::exists(path, ignored)) {
    return {{"gpu", run.gpu.name}, {"driver", ""}, {"commit", ""},
            {"command", ""},       {"date", ""},   {"rows", Json::array()}};
  }
  Json record = parse_json(read_file(path), path);
  if (!record.is_object() || !is_text(record, "gpu") || !record.contains("rows") ||
      !record.at("rows").is_array()) {
    throw Error(ErrorKind::input,
                fmt::format("{} is no record of layer times: it needs an object with 'gpu' and "
                            "'rows'; give another --out",
                            path));
  }
  if (record.at("gpu") != run.gpu.name) {
    throw Error(ErrorKind::input,
                fmt::format("{} is a record of {}, this is {}; give another --out", path,
                            record.at("gpu").get<std::string>(), run.gpu.name));
  }
  for (std::size_t i = 0; i < record.at("rows").size(); ++i)
    check_row(record.at("rows")[i], i + 1, path);
  return record;
}

bool merge_row(Json& record, const BenchRun& run, const BenchRow& row) {
  if (!has_good_time(row.trial)) return false;
  Json added = record_row(run, row);
  Json& rows = record.at("rows");
  const auto old = std::find_if(rows.begin(), rows.end(),
                                [&](const Json& other) { return same_layer(other, added); });
  if (old == rows.end()) {
    rows.push_back(std::move(added));
  } else if (row.trial.source != Source::measured &&
             old->at("source") == to_string(Source::measured)) {
    return false;
  } else {
    *old = std::move(added);
  }
  if (!run.gpu.driver.empty()) record["driver"] = run.gpu.driver;  // none offline
  record["commit"] = run.commit;
  record["command"] = run.command;
  record["date"] = run.date;
  return true;
}

void check_record_place(const std::string& path) {
  const fs::path directory = fs::absolute(path).parent_path();
  std::error_code error;
  fs::create_directories(directory, error);
  const int code = error ? error.value() : ::access(directory.c_str(), W_OK) != 0 ? errno : 0;
  if (code != 0) {
    throw Error(ErrorKind::io, fmt::format("cannot write {}: {}: {}; give another --out", path,
                                           directory.string(), std::strerror(code)));
  }
}

bool update_record(const std::string& path, const BenchRun& run, const BenchRow& row) {
  Json record = read_record(path, run);
  if (!merge_row(record, run, row)) return false;
  write_file_atomically(path, record.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
  return true;
}

}  // namespace moetune
