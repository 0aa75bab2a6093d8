// Command lines that do not parse, explained in one line.
#pragma once

#include <CLI/CLI.hpp>

#include "core/error.hpp"

namespace moetune {

// What `error` means for someone who misspelt a subcommand or an option: the nearest name, and
// where the help is.
Error usage_error(const CLI::App& app, const CLI::ParseError& error);

}  // namespace moetune
