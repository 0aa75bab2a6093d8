// The shipped JSON Schema, configs/table.schema.json, is the one truth about a table's form.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "table/table.hpp"

namespace moetune {

// The schema as built into the program.
std::string_view table_schema();

// Throws Error(input) naming `path`, the field, its value and what the schema expects there.
void check_schema(const nlohmann::json& document, const std::string& path);

// What read_table does with a file's text; `path` is for messages.
Table parse_table(std::string_view text, const std::string& path);

}  // namespace moetune
