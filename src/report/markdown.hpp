// A search as Markdown, for the summary page of a CI run.
#pragma once

#include <string>

#include "report/html_data.hpp"

namespace moetune {

std::string markdown(const ReportData& data);

}  // namespace moetune
