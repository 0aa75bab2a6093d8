// A search as one HTML page that needs no network: what it found, and how the points compare.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "report/html_data.hpp"

namespace moetune {

std::string html_escape(std::string_view text);

// What the page's scripts draw from.
nlohmann::ordered_json page_json(const ReportData& data);
// The whole page, chart library included.
std::string html_page(const ReportData& data);

}  // namespace moetune
