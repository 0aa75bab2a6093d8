// https://github.com/testmoapp/junitxml: what CI systems read.
#include <fmt/format.h>

#include "report/validation.hpp"

namespace moetune {
namespace {

// Also what XML 1.0 cannot hold at all: control characters and broken UTF-8, which come in with
// file names and with values from files.
std::string escape(const std::string& text) {
  const auto replace = nlohmann::json::error_handler_t::replace;
  const std::string valid =
      nlohmann::json::parse(nlohmann::json(text).dump(-1, ' ', false, replace)).get<std::string>();
  std::string escaped;
  for (const char c : valid) {
    switch (c) {
      case '&':
        escaped += "&amp;";
        break;
      case '<':
        escaped += "&lt;";
        break;
      case '>':
        escaped += "&gt;";
        break;
      case '"':
        escaped += "&quot;";
        break;
      case '\'':
        escaped += "&apos;";
        break;
      default:
        escaped += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
    }
  }
  return escaped;
}

struct Suite {
  std::string cases;
  int num_tests = 0, num_failures = 0, num_errors = 0;

  // `error` empty: none.
  void add(const std::string& path, const std::string& name, const std::vector<Finding>& findings,
           const std::string& error) {
    ++num_tests;
    cases += fmt::format("    <testcase classname=\"{}\" name=\"{}\">\n", escape(path), name);
    bool failed = false;
    for (const Finding& finding : findings) {
      if (!finding.fails) continue;
      failed = true;
      cases += fmt::format("      <failure type=\"{}\" message=\"{}\"/>\n",
                           to_string(finding.check), escape(finding.message));
    }
    if (!error.empty()) cases += fmt::format("      <error message=\"{}\"/>\n", escape(error));
    cases += "    </testcase>\n";
    num_failures += failed ? 1 : 0;
    num_errors += error.empty() ? 0 : 1;
  }
};

}  // namespace

std::string validation_junit(std::span<const TableReport> reports) {
  std::string suites;
  int num_tests = 0, num_failures = 0, num_errors = 0;
  for (const TableReport& report : reports) {
    Suite suite;
    const std::string error = report.error ? report.error->what() : "";
    suite.add(report.path, "table", report.findings, error);
    for (const EntryReport& entry : report.entries) {
      suite.add(report.path, fmt::format("{} tokens", entry.num_tokens), entry.findings,
                entry.trial ? "" : error);
    }
    suites += fmt::format(
        "  <testsuite name=\"{}\" tests=\"{}\" failures=\"{}\" errors=\"{}\">\n{}  </testsuite>\n",
        escape(report.path), suite.num_tests, suite.num_failures, suite.num_errors, suite.cases);
    num_tests += suite.num_tests;
    num_failures += suite.num_failures;
    num_errors += suite.num_errors;
  }
  return fmt::format(
      "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites name=\"moe-tune validate\" "
      "tests=\"{}\" failures=\"{}\" errors=\"{}\">\n{}</testsuites>\n",
      num_tests, num_failures, num_errors, suites);
}

}  // namespace moetune
