// Small text and file helpers with errors that name the file.
#pragma once

#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace moetune {

// The candidate nearest to `text` by edit distance, or "" when none is near.
std::string nearest(std::string_view text, std::span<const std::string> candidates);
// Whole file; throws Error(input) with the path and the system's reason.
std::string read_file(const std::string& path);
// Temporary file in the same directory, fsync, rename. Throws Error(io) with path and reason; the
// old content stays when it fails.
void write_file_atomically(const std::string& path, std::string_view content);
// Parses JSON; throws Error(input) "PATH:LINE: ..." on malformed or truncated text.
nlohmann::ordered_json parse_json(std::string_view text, const std::string& path);
// 128-bit hash as 32 hex digits; stable across machines and versions.
std::string hash_hex(std::string_view data);
// "2026-11-21T09:30:00Z"
std::string utc_now();

}  // namespace moetune
