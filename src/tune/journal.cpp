#include "tune/journal.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <set>
#include <string_view>
#include <system_error>

#include "core/error.hpp"
#include "core/text.hpp"
#include "table/older.hpp"
#include "tune/gzip.hpp"

namespace moetune {
namespace {

using Json = nlohmann::ordered_json;

[[noreturn]] void cannot(std::string_view what, const std::string& path, int code) {
  const char* remedy = code == ENOSPC || code == EDQUOT || code == EFBIG
                           ? "free some space, then go on with --resume"
                           : "check the path and its permissions, or give another --out";
  throw Error(ErrorKind::io,
              fmt::format("cannot {} {}: {}; {}", what, path, std::strerror(code), remedy));
}

void check_header(const Json& header, const std::string& path) {
  if (!header.is_object() || header.value("record", "") != "header" ||
      !header.contains("identity")) {
    throw Error(
        ErrorKind::input,
        fmt::format("{}:1: not a search journal; move it away or give another --out", path));
  }
  if (const int version = header.value("version", 0); version != kJournalVersion) {
    throw Error(ErrorKind::input,
                fmt::format("{}:1: journal version {}, this program reads {}; search without "
                            "--resume (the old journal is kept)",
                            path, version, kJournalVersion));
  }
}

void check_same(const Json& found, const Json& wanted, const std::string& path) {
  std::set<std::string> keys;
  for (const Json* json : {&found, &wanted})
    for (const auto& [key, value] : json->items()) keys.insert(key);
  for (const std::string& key : keys) {
    const auto text = [&key](const Json& json) {
      return json.contains(key) ? json.at(key).dump() : std::string("missing");
    };
    if (text(found) == text(wanted)) continue;
    throw Error(ErrorKind::input,
                fmt::format("{}: cannot resume, its {} is {} and this search's is {}; search "
                            "without --resume (the old journal is kept) or repeat its settings",
                            path, key, text(found), text(wanted)));
  }
}

// Reads one line after the header; false when it is not a record.
bool read_record(const std::string& line, JournalContents& contents, std::string& why) {
  try {
    Json json = Json::parse(line);
    if (json.at("record").get<std::string>() != "trial") {
      contents.others.push_back(std::move(json));
      return true;
    }
    JournalTrial known;
    json.get_to(known.trial);
    known.round = json.at("round").get<int>();
    known.elapsed_s = json.at("elapsed_s").get<double>();
    contents.trials.push_back(std::move(known));
    return true;
  } catch (const nlohmann::json::parse_error&) {
    why = "not JSON";
  } catch (const std::exception& error) {
    why = error.what();
  }
  return false;
}

}  // namespace

Json to_record(const JournalTrial& trial) {
  Json record{{"record", "trial"}, {"round", trial.round}, {"elapsed_s", trial.elapsed_s}};
  record.update(Json(trial.trial));
  return record;
}

JournalContents read_journal(const std::string& path) {
  const std::string text = read_maybe_gzip(path);
  JournalContents contents;
  std::size_t begin = 0;
  for (int number = 1; begin < text.size(); ++number) {
    const std::size_t end = text.find('\n', begin);
    if (end == std::string::npos) {
      contents.warnings.push_back(fmt::format("{}:{}: torn line skipped", path, number));
      break;
    }
    const std::string line = text.substr(begin, end - begin);
    begin = end + 1;
    contents.good_bytes = begin;
    if (number == 1) {
      contents.header = Json::parse(line, nullptr, false);
      check_header(contents.header, path);
      upgrade_journal_identity(contents.header["identity"]);
    } else if (std::string why; !read_record(line, contents, why)) {
      contents.warnings.push_back(fmt::format("{}:{}: line skipped: {}", path, number, why));
    }
  }
  return contents;
}

Journal::Journal(std::string path, const Json& identity, const std::string& command, bool resume)
    : path_(std::move(path)), synced_(std::chrono::steady_clock::now()) {
  namespace fs = std::filesystem;
  std::error_code code;
  fs::create_directories(fs::path(path_).parent_path(), code);
  if (code) cannot("create the folder of", path_, code.value());
  if (resume && fs::exists(path_)) {
    open(false);
    recover(identity);
    if (lseek(file_.fd, 0, SEEK_END) > 0) {
      append(Json{{"record", "resume"}, {"created", utc_now()}, {"command", command}});
      return;
    }
  } else {
    if (resume) notes_.push_back(fmt::format("nothing to resume: no journal at {}", path_));
    open(false);  // takes the lock: a journal that is being written is not moved away
    struct stat status {};
    if (fstat(file_.fd, &status) == 0 && S_ISREG(status.st_mode) && status.st_size > 0) {
      std::string kept;
      for (int n = 1; kept.empty() || fs::exists(kept); ++n) {
        kept = fmt::format("{}.bak-{}", path_, n);
      }
      if (std::rename(path_.c_str(), kept.c_str()) != 0) cannot("rename", path_, errno);
      notes_.push_back(fmt::format("the earlier journal is kept as {}", kept));
      open(true);
    }
  }
  append(Json{{"record", "header"},
              {"version", kJournalVersion},
              {"identity", identity},
              {"created", utc_now()},
              {"command", command}});
  sync();
}

Journal::~Journal() {
  if (file_.fd >= 0) fdatasync(file_.fd);
}

void Journal::File::close() {
  if (fd >= 0) ::close(fd);
  fd = -1;
}

void Journal::open(bool truncate) {
  file_.close();
  file_.fd = ::open(path_.c_str(),
                    O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC | (truncate ? O_TRUNC : 0), 0644);
  if (file_.fd < 0) cannot("open", path_, errno);
  if (flock(file_.fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    throw Error(ErrorKind::io,
                fmt::format("{} is being written by another search; wait for it or give another "
                            "--out",
                            path_));
  }
}

void Journal::recover(const Json& identity) {
  JournalContents contents = read_journal(path_);
  if (!contents.header.is_null()) check_same(contents.header.at("identity"), identity, path_);
  if (ftruncate(file_.fd, static_cast<off_t>(contents.good_bytes)) != 0)
    cannot("cut", path_, errno);
  known_ = std::move(contents.trials);
  notes_.insert(notes_.end(), contents.warnings.begin(), contents.warnings.end());
}

void Journal::append(const Json& record) {
  // A message from a compiler may hold bytes that are not UTF-8.
  const std::string line = record.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
  const off_t before = lseek(file_.fd, 0, SEEK_END);
  std::string_view left = line;
  while (!left.empty()) {
    const ssize_t written = ::write(file_.fd, left.data(), left.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) {
      const int code = errno;
      if (before >= 0 && ftruncate(file_.fd, before) != 0) {
        cannot("write (nor cut the torn last line of)", path_, code);
      }
      cannot("write", path_, code);
    }
    left.remove_prefix(static_cast<std::size_t>(written));
  }
  if (std::chrono::steady_clock::now() - synced_ > std::chrono::seconds(1)) sync();
}

void Journal::append(const JournalTrial& trial) {
  append(to_record(trial));
}

void Journal::sync() {
  // A disk may notice that it is full only now.
  if (fdatasync(file_.fd) != 0 && errno != EINVAL && errno != EROFS) cannot("write", path_, errno);
  synced_ = std::chrono::steady_clock::now();
}

}  // namespace moetune
