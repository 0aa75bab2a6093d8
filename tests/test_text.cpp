#include <doctest/doctest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <string>

#include "core/error.hpp"
#include "core/text.hpp"
#include "tests/temporary_folder.hpp"

using namespace moetune;
namespace fs = std::filesystem;

namespace {

struct Folder : TemporaryFolder {
  std::size_t num_files() const {
    return static_cast<std::size_t>(
        std::distance(fs::directory_iterator(path()), fs::directory_iterator()));
  }
};

struct Caught {
  ErrorKind kind = ErrorKind::failed;
  std::string message = "no error";
  bool holds(const std::string& part) const { return message.find(part) != std::string::npos; }
};

Caught caught(const auto& call) {
  try {
    call();
  } catch (const Error& error) {
    return {error.kind(), error.what()};
  }
  return {};
}

}  // namespace

TEST_CASE("error: kinds map to the documented exit codes") {
  CHECK(exit_code(ErrorKind::usage) == 2);
  CHECK(exit_code(ErrorKind::input) == 2);
  CHECK(exit_code(ErrorKind::io) == 2);
  CHECK(exit_code(ErrorKind::device) == 3);
  CHECK(exit_code(ErrorKind::failed) == 1);
}

TEST_CASE("text: nearest finds a misspelt or shortened name and nothing far off") {
  const std::vector<std::string> names = {"search", "validate", "bench", "qwen3-30b-a3b"};
  CHECK(nearest("serach", names) == "search");
  CHECK(nearest("VALIDATE", names) == "validate");
  CHECK(nearest("qwen3", names) == "qwen3-30b-a3b");
  CHECK(nearest("zzzz", names).empty());
  CHECK(nearest("", names).empty());
}

TEST_CASE("text: a written file reads back, replaces the old one and leaves no other") {
  const Folder folder;
  const std::string path = folder.file("table.json");
  const std::string content = std::string("a\0b\n", 4) + std::string(300000, 'x');
  write_file_atomically(path, "old");
  write_file_atomically(path, content);
  CHECK(read_file(path) == content);
  CHECK(folder.num_files() == 1);
}

TEST_CASE("text: a failed write keeps the old file, removes the temporary one and says why") {
  const Folder folder;
  const std::string path = folder.file("table.json");
  write_file_atomically(path, "old");
  // A file-size limit is what an ordinary user can have of a full disk.
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit = {4096, 4096};
    if (::setrlimit(RLIMIT_FSIZE, &limit) != 0) ::_exit(9);
    const Caught error = caught([&] { write_file_atomically(path, std::string(100000, 'x')); });
    ::_exit(error.kind == ErrorKind::io && error.holds(path) && error.holds("File too large") ? 0
                                                                                              : 1);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
  CHECK(read_file(path) == "old");
  CHECK(folder.num_files() == 1);
}

TEST_CASE("text: places that cannot be written are an io error that names them") {
  const Folder folder;
  const std::string inside_absent = folder.file("absent/table.json");
  const Caught absent = caught([&] { write_file_atomically(inside_absent, "x"); });
  CHECK(absent.kind == ErrorKind::io);
  CHECK(absent.holds(inside_absent));
  CHECK(absent.holds("No such file"));
  fs::create_directory(folder.file("folder"));
  CHECK(caught([&] { write_file_atomically(folder.file("folder"), "x"); }).holds("Is a directory"));
  write_file_atomically(folder.file("file"), "old");
  CHECK(
      caught([&] { write_file_atomically(folder.file("file/x"), "x"); }).holds("Not a directory"));
  if (::geteuid() != 0) {  // root may write everywhere
    ::chmod(folder.file("folder").c_str(), 0500);
    CHECK(caught([&] {
            write_file_atomically(folder.file("folder/x"), "x");
          }).holds("Permission denied"));
  }
}

TEST_CASE("text: a device is written to, never replaced, and a full one is an error") {
  if (!fs::exists("/dev/full")) return;
  CHECK(caught([] { write_file_atomically("/dev/full", "x"); }).holds("No space left on device"));
  CHECK(fs::is_character_file("/dev/full"));
  CHECK_NOTHROW(write_file_atomically("/dev/null", "x"));
  CHECK(fs::is_character_file("/dev/null"));
}

TEST_CASE("text: an unreadable file is an input error with the system's reason") {
  const Folder folder;
  const Caught absent = caught([&] { read_file(folder.file("absent")); });
  CHECK(absent.kind == ErrorKind::input);
  CHECK(absent.holds("No such file"));
  CHECK(caught([&] { read_file(folder.file("")); }).holds("Is a directory"));
}

TEST_CASE("text: malformed JSON is located by file, line and column") {
  CHECK(parse_json("{\"b\": 1, \"a\": [2]}", "f").dump() == "{\"b\":1,\"a\":[2]}");
  CHECK(caught([] { parse_json("{\n  \"a\": x\n}", "dir/f.json"); }).holds("dir/f.json:2:8: "));
  CHECK(caught([] { parse_json("{\n\"a\": 1,\n", "f.json"); }).holds("f.json:3:"));
  CHECK(caught([] { parse_json("", "f.json"); }).holds("f.json:1:1: "));
  CHECK(caught([] { parse_json("{} {}", "f.json"); }).holds("f.json:1:4: "));
  CHECK(caught([] { parse_json("{\"a\": 1e999}", "f.json"); }).holds("f.json: "));
  CHECK(caught([] { parse_json("\"\xff\"", "f.json"); }).holds("f.json:1:2: "));
  const std::string deep(200000, '[');
  CHECK(caught([&] { parse_json(deep, "f.json"); }).holds("nested more than"));
}

TEST_CASE("text: the hash is the published FNV-1a, so that names are stable") {
  CHECK(hash_hex("") == "6c62272e07bb014262b821756295c58d");
  CHECK(hash_hex("a") == "d228cb696f1a8caf78912b704e4a8964");
  CHECK(hash_hex(std::string("a\0", 2)) != hash_hex("a"));
}

TEST_CASE("text: the time is ISO 8601 in UTC") {
  const std::string now = utc_now();
  CHECK(now.size() == 20);
  CHECK(now[10] == 'T');
  CHECK(now.back() == 'Z');
}
