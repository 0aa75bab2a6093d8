#include "report/row_record.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "core/error.hpp"
#include "core/text.hpp"
#include "report/bench_record.hpp"

namespace moetune {

using Json = nlohmann::ordered_json;

Json read_rows(const std::string& path, const BenchRun& run, const std::string& kind) {
  Json record = read_record(path, run);
  for (const Json& row : record.at("rows")) {
    if (row.contains("kind") && row.at("kind") == kind) continue;
    throw Error(ErrorKind::input,
                fmt::format("{} is no record of kind '{}'; give another --out", path, kind));
  }
  return record;
}

void update_rows(const std::string& path, const BenchRun& run, Json row,
                 std::initializer_list<const char*> key) {
  Json record = read_rows(path, run, row.at("kind").get<std::string>());
  Json& rows = record.at("rows");
  const auto same = [&](const Json& other) {
    return std::all_of(key.begin(), key.end(), [&](const char* name) {
      return other.contains(name) && other.at(name) == row.at(name);
    });
  };
  const auto old = std::find_if(rows.begin(), rows.end(), same);
  if (old == rows.end()) {
    rows.push_back(std::move(row));
  } else {
    *old = std::move(row);
  }
  record["driver"] = run.gpu.driver;
  record["commit"] = run.commit;
  record["command"] = run.command;
  record["date"] = run.date;
  write_file_atomically(path, record.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
}

}  // namespace moetune
