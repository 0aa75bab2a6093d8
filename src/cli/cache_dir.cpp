#include "cli/cache_dir.hpp"

#include <cstdlib>
#include <filesystem>

namespace moetune {
namespace {

// The XDG base directory specification has relative paths ignored.
std::filesystem::path absolute_path_in(const char* variable) {
  const char* value = std::getenv(variable);
  const std::filesystem::path path = value ? value : "";
  return path.is_absolute() ? path : std::filesystem::path();
}

}  // namespace

std::string default_cache_dir() {
  if (const auto cache = absolute_path_in("XDG_CACHE_HOME"); !cache.empty()) {
    return cache / "moe-tune";
  }
  if (const auto home = absolute_path_in("HOME"); !home.empty()) {
    return home / ".cache" / "moe-tune";
  }
  return "";
}

}  // namespace moetune
