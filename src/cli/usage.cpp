#include "cli/usage.hpp"

#include <fmt/format.h>

#include <string>
#include <vector>

#include "core/text.hpp"

namespace moetune {
namespace {

const CLI::App* chosen_subcommand(const CLI::App& app) {
  const auto chosen = app.get_subcommands();
  return chosen.empty() ? nullptr : chosen.front();
}

std::vector<std::string> option_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::Option* option : app.get_options())
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  return names;
}

std::vector<std::string> subcommand_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands(nullptr))
    if (!command->get_group().empty()) names.push_back(command->get_name());  // hidden: no group
  return names;
}

std::string suggestion(const std::string& near) {
  return near.empty() ? "" : fmt::format(", did you mean {}?", near);
}

std::string explain_extra(const CLI::App& app, const std::string& extra) {
  const CLI::App* command = chosen_subcommand(app);
  if (!extra.starts_with('-')) {
    if (command) return fmt::format("{} takes no argument '{}'", command->get_name(), extra);
    return fmt::format("unknown subcommand '{}'{}", extra,
                       suggestion(nearest(extra, subcommand_names(app))));
  }
  std::vector<std::string> names = option_names(app);
  if (command) {
    const std::vector<std::string> more = option_names(*command);
    names.insert(names.end(), more.begin(), more.end());
  }
  const std::size_t start = extra.find_first_not_of('-');
  const std::string bare = start == std::string::npos ? "" : extra.substr(start);
  const std::string near = nearest("--" + bare.substr(0, bare.find('=')), names);
  return fmt::format("unknown option '{}'{}", extra, suggestion(near));
}

}  // namespace

Error usage_error(const CLI::App& app, const CLI::ParseError& error) {
  const CLI::App* command = chosen_subcommand(app);
  const std::string help = command
                               ? fmt::format("{} {} --help", app.get_name(), command->get_name())
                               : fmt::format("{} --help", app.get_name());
  std::string what = error.what();
  const std::vector<std::string> extras = app.remaining(true);
  const bool is_required = dynamic_cast<const CLI::RequiredError*>(&error) != nullptr;
  const bool is_extra = dynamic_cast<const CLI::ExtrasError*>(&error) != nullptr;
  if (!extras.empty() && (is_extra || is_required)) {
    what = explain_extra(app, extras.front());
  } else if (is_required && !command) {
    what = fmt::format("no subcommand given; there are {}", fmt::join(subcommand_names(app), ", "));
  }
  return Error(ErrorKind::usage, fmt::format("{}; see `{}`", what, help));
}

}  // namespace moetune
