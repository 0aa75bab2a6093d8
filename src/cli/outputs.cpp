#include "cli/outputs.hpp"

#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "core/error.hpp"
#include "core/text.hpp"

namespace moetune {
namespace {

namespace fs = std::filesystem;

OutputPaths paths_under(const std::string& out_dir, const TableIdentity& identity, const Gpu& gpu) {
  const fs::path out = out_dir;
  const std::string name = table_file_name(identity);
  const std::string stem = name.substr(0, name.rfind(".json"));
  OutputPaths paths;
  paths.table_dir = (out / "configs" / "tuned" / file_name(gpu)).lexically_normal().string();
  paths.table = (fs::path(paths.table_dir) / name).string();
  // An offline search must not push aside the journal whose times it may be reading.
  paths.journal = (out / "results" / file_name(gpu) / (stem + (gpu.offline ? ".offline" : "")))
                      .lexically_normal()
                      .string() +
                  ".jsonl";
  return paths;
}

bool holds_measured_times(const std::string& path) {
  if (!fs::exists(path)) return false;
  try {
    const Table table = read_table(path);
    return std::any_of(table.entries.begin(), table.entries.end(),
                       [](const auto& entry) { return entry.second.source == Source::measured; });
  } catch (const Error&) {
    return false;  // no table: write_table sets it aside
  }
}

// Makes the directory.
void check_writable(const std::string& directory) {
  std::error_code error;
  fs::create_directories(directory, error);
  int code = error.value();
  if (code == 0) {
    std::string probe = directory + "/.probe-XXXXXX";
    const int fd = mkstemp(probe.data());
    code = fd < 0 ? errno : 0;
    if (fd >= 0) {
      if (write(fd, "x", 1) != 1) code = errno;
      close(fd);
      unlink(probe.c_str());
    }
  }
  if (code != 0) {
    throw Error(ErrorKind::io, fmt::format("cannot write to {}: {}; give another --out", directory,
                                           std::strerror(code)));
  }
}

}  // namespace

OutputPaths choose_outputs(const std::string& out_dir, const TableIdentity& identity,
                           const Gpu& gpu) {
  OutputPaths paths = paths_under(out_dir, identity, gpu);
  if (gpu.offline && holds_measured_times(paths.table)) {
    const std::string below = (fs::path(out_dir) / "offline").lexically_normal().string();
    spdlog::warn("{} holds measured times: this offline search writes below {} instead",
                 paths.table, below);
    paths = paths_under(below, identity, gpu);
  }
  check_writable(paths.table_dir);
  check_writable(fs::path(paths.journal).parent_path().string());
  return paths;
}

std::vector<std::string> own_arguments() {
  std::vector<std::string> arguments;
  const std::string raw = read_file("/proc/self/cmdline");
  for (std::size_t at = raw.find('\0') + 1; at != 0 && at < raw.size();) {
    const std::size_t end = std::min(raw.find('\0', at), raw.size());
    arguments.push_back(raw.substr(at, end - at));
    at = end + 1;
  }
  return arguments;
}

std::string command_line() {
  std::string text = "moe-tune";
  for (const std::string& word : own_arguments()) {
    const bool plain =
        !word.empty() && word.find_first_of(" \t\n'\"\\$`*?[]();&|<>#!~") == std::string::npos;
    text += plain ? " " + word : fmt::format(" '{}'", word);
  }
  return text;
}

}  // namespace moetune
