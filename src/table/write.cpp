#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <optional>
#include <system_error>

#include "core/error.hpp"
#include "core/text.hpp"
#include "table/merge.hpp"
#include "table/schema.hpp"
#include "table/table.hpp"

namespace moetune {
namespace {

namespace fs = std::filesystem;

// Two searches may finish at once: reading, merging and writing must be one step. The lock is on
// the directory itself, so no lock file is left among the tables. A file system that has no such
// locks (some NFS) leaves only the atomic write.
class DirectoryLock {
 public:
  explicit DirectoryLock(const std::string& directory)
      : descriptor_(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {
    while (descriptor_ >= 0 && ::flock(descriptor_, LOCK_EX) != 0 && errno == EINTR) {
    }
  }
  ~DirectoryLock() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }
  DirectoryLock(const DirectoryLock&) = delete;
  DirectoryLock& operator=(const DirectoryLock&) = delete;

 private:
  int descriptor_;
};

// The table at `path` if new entries may stand in it; nothing when it is another's or no table.
std::optional<Table> read_alike(const std::string& path, const Table& table) {
  try {
    Table old = read_table(path);
    if (why_not_alike(old, table).empty()) return old;
  } catch (const Error&) {
    // Whatever it is, it is kept under another name.
  }
  return std::nullopt;
}

// Takes out the entries whose kernels are not those of `table`: their token counts are missing
// then. Whether there were any.
bool drop_stale(Table& old, const Table& table) {
  const auto is_stale = [&](const auto& item) {
    const std::set<std::string> used = variants_of(item.second.plan);
    return !changed_variants(used, old.identity.kernels, table.identity.kernels).empty();
  };
  for (const auto& item : old.entries)
    if (is_stale(item)) old.missing.insert(item.first);
  return std::erase_if(old.entries, is_stale) > 0;
}

Table merge(const Table& table, const Table& old) {
  Table merged = table;
  merged.entries.insert(old.entries.begin(), old.entries.end());
  merged.missing.insert(old.missing.begin(), old.missing.end());
  std::erase_if(merged.missing, [&](std::int64_t count) { return merged.entries.contains(count); });
  return merged;
}

// A copy, not a rename: when the new table then cannot be written, the old one is still in place.
std::string back_up(const std::string& path) {
  for (int n = 1;; ++n) {
    const std::string backup = fmt::format("{}.bak-{}", path, n);
    std::error_code error;
    if (fs::copy_file(path, backup, error)) return backup;
    if (error != std::errc::file_exists) {
      std::error_code ignored;
      fs::remove(backup, ignored);
      throw Error(ErrorKind::io, fmt::format("cannot back up {} as {}: {}; free space or choose "
                                             "another --out",
                                             path, backup, error.message()));
    }
  }
}

}  // namespace

std::string write_table(const std::string& directory, const Table& table) {
  std::error_code error;
  fs::create_directories(directory, error);
  if (error) {
    throw Error(ErrorKind::io, fmt::format("cannot make the directory {}: {}; choose another --out",
                                           directory, error.message()));
  }
  const std::string path = (fs::path(directory) / table_file_name(table.identity)).string();
  const DirectoryLock lock(directory);

  const bool exists = fs::exists(path, error);
  std::optional<Table> old = exists ? read_alike(path, table) : std::nullopt;
  const bool loses = exists && (!old || drop_stale(*old, table));
  const nlohmann::ordered_json json = old ? merge(table, *old) : table;
  const std::string text =
      json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
  parse_table(text, path);  // nothing is written that would not be read

  const std::string backup = loses ? back_up(path) : "";
  try {
    write_file_atomically(path, text);
  } catch (const Error&) {
    if (!backup.empty()) fs::remove(backup, error);
    throw;
  }
  return path;
}

}  // namespace moetune
