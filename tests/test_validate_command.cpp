// `moe-tune validate` as a user meets it: exit codes, streams, files. Where nothing says otherwise
// the device is offline, so that the outcome is the same with and without a GPU.
#include <doctest/doctest.h>
#include <fmt/format.h>
#include <sys/wait.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <vector>

#include "core/text.hpp"
#include "jit/compiler.hpp"
#include "table/table.hpp"
#include "tests/table_fixture.hpp"

namespace moetune {
namespace {

struct Result {
  int code;
  std::string out, err;
};

Result validate(const std::string& arguments) {
  const TemporaryFolder directory;
  const std::string out = directory.file("out"), err = directory.file("err");
  const int status = std::system(
      fmt::format("{} validate {} >'{}' 2>'{}'", MOETUNE_PROGRAM, arguments, out, err).c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read_file(out), read_file(err)};
}

Table current_table() {
  Table table = sample_table();
  table.identity.nvrtc = nvrtc_version();
  table.identity.kernels = kernel_hashes();
  return table;
}

bool holds(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

constexpr const char* kOffline = "--device offline:h200 --tokens 1,8,64";

}  // namespace

TEST_CASE("validate command: a good table exits with 0 and says what was not checked") {
  const TemporaryFolder directory;
  const std::string path = write_table(directory.path(), current_table());
  const Result result = validate(fmt::format("'{}' {}", path, kOffline));
  CAPTURE(result.out + result.err);
  CHECK(result.code == 0);
  CHECK(holds(result.out, "1 of 1 tables good"));
  CHECK(holds(result.out, "correctness and speed were not checked"));
}

TEST_CASE("validate command: a table that falls short exits with 1") {
  const TemporaryFolder directory;
  Table table = current_table();
  table.entries.at(8).source = Source::predicted;
  const std::string path = write_table(directory.path(), table);
  CHECK(validate(fmt::format("'{}' {}", path, kOffline)).code == 1);
  const Result uncovered = validate(
      fmt::format("'{}' --device offline:h200", write_table(directory.path(), current_table())));
  CHECK(uncovered.code == 1);
  CHECK(holds(uncovered.out, "no entry for 15 token counts"));
  const Result other = validate(fmt::format("'{}' --device offline:a100 --tokens 1", path));
  CHECK(other.code == 1);
  CHECK(holds(other.out, "the table is for GPU 'NVIDIA H200'"));
}

TEST_CASE("validate command: JSON on stdout and JUnit in a file") {
  const TemporaryFolder directory;
  const std::string path = write_table(directory.path(), current_table());
  const std::string junit = directory.file("junit.xml");
  const Result result = validate(fmt::format("'{}' {} --json --junit '{}'", path, kOffline, junit));
  CHECK(result.code == 0);
  CHECK(parse_json(result.out, "stdout").at("good") == true);
  CHECK(holds(read_file(junit), "tests=\"4\" failures=\"0\" errors=\"0\""));
  const Result nowhere = validate(
      fmt::format("'{}' {} --junit '{}/absent/junit.xml'", path, kOffline, directory.path()));
  CHECK(nowhere.code == 2);
  CHECK(holds(nowhere.err, "absent is not a directory"));
  CHECK(nowhere.out == "");
}

TEST_CASE("validate command: hostile files exit with 2, one line each, and hide no other table") {
  const TemporaryFolder directory;
  const std::string good = write_table(directory.path(), current_table());
  const std::string text = read_file(good);
  std::vector<std::string> paths;
  const auto add = [&](const std::string& name, const std::string& content) {
    paths.push_back(directory.file(name));
    std::ofstream(paths.back()) << content;
  };
  add("empty.json", "");
  add("truncated.json", text.substr(0, text.size() / 3));
  add("deep.json", std::string(300000, '['));
  add("deep-object.json", [] {
    std::string nested;
    for (int i = 0; i < 100000; ++i) nested += "{\"a\":";
    return nested;
  }());
  add("binary.json", std::string("\x7f"
                                 "ELF\0\0\xff\xfe",
                                 8));
  add("long-key.json", "{\"" + std::string(1 << 20, '1') + "\": 1}");
  add("escape.json", R"({"schema": "\u001b[2J\nerror"})");
  for (const auto& file :
       std::filesystem::directory_iterator(MOETUNE_SOURCE_DIR "/tests/data/tables"))
    paths.push_back(file.path().string());
  paths.push_back(directory.path());
  paths.push_back(directory.file("absent.json"));
  std::string all;
  for (const std::string& path : paths) {
    CAPTURE(path);
    const Result result = validate(fmt::format("'{}' {}", path, kOffline));
    CHECK(result.code == 2);
    CHECK(holds(result.out, "UNREADABLE"));
    CHECK(holds(result.out, path));
    CHECK(result.out.size() < 2000);
    CHECK(result.out.find('\x1b') == std::string::npos);
    all += fmt::format("'{}' ", path);
  }
  const Result together = validate(fmt::format("{} '{}' {}", all, good, kOffline));
  CHECK(together.code == 2);
  CHECK(holds(together.out,
              fmt::format("1 of {} tables good ({} unreadable)", paths.size() + 1, paths.size())));
}

TEST_CASE("validate command: bad usage exits with 2, a GPU that is not there with 3") {
  const TemporaryFolder directory;
  const std::string path = write_table(directory.path(), current_table());
  CHECK(validate("").code == 2);
  for (const char* option : {"--tokens 0", "--tokens -1", "--tokens x", "--max-regression -1",
                             "--max-regression nan", "--max-regresion 5", "--device offline:h20"}) {
    CAPTURE(option);
    const Result result = validate(fmt::format("'{}' {}", path, option));
    CHECK(result.code == 2);
    CHECK(result.out == "");
  }
  CHECK(validate(fmt::format("'{}' --device 99", path)).code == 3);
}

}  // namespace moetune
