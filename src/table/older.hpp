// Tables and journals from before a change of their form, brought to the present one when read.
//
// Until table version 3 there was one hash, "kernels_hash", over all kernel sources, where now each
// variant has its own. Of the last sources of that time the variants' hashes are known. Of older
// ones the one hash stands for each variant: it tells as well that the sources are others than
// here.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace moetune {

inline constexpr int kOldTableSchemaVersion = 3;

// Makes a table of version 3 one of the present version; leaves everything else to the schema.
// Throws Error(input) naming `path` when it has no such hash.
void upgrade_table(nlohmann::json& document, const std::string& path);
void upgrade_table(nlohmann::ordered_json& document, const std::string& path);

// The same for the identity in a journal's header, whatever is wrong with it.
void upgrade_journal_identity(nlohmann::ordered_json& identity);

}  // namespace moetune
