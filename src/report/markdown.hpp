// A search as Markdown, for the summary page of a CI run.
#pragma once

#include <string>

#include "report/html_data.hpp"

namespace moetune {

// As a table's cell holds it: ends no row, begins no markup.
std::string markdown_cell(std::string_view text);

std::string markdown(const ReportData& data);

}  // namespace moetune
