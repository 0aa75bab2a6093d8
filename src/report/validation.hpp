// What `moe-tune validate` found, for people, for programs and for CI. Pure functions.
#pragma once

#include <nlohmann/json.hpp>
#include <span>
#include <string>

#include "table/validate.hpp"

namespace moetune {

// The file, what the table is for, one line an entry, then what concerns the table as a whole.
std::string validation_text(const TableReport& report);
// "2 tables: 1 good, 1 falls short; 36 entries: ...". `checked_on_device` false adds what was not
// checked.
std::string validation_summary(std::span<const TableReport> reports, bool checked_on_device);
nlohmann::ordered_json validation_json(std::span<const TableReport> reports,
                                       bool checked_on_device);
// JUnit XML: a suite a file, a case an entry and one for the table as a whole. An entry that the
// GPU was to check but did not reach is an error in its case.
std::string validation_junit(std::span<const TableReport> reports);

}  // namespace moetune
