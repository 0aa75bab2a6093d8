#include <doctest/doctest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <set>
#include <thread>
#include <vector>

#include "core/error.hpp"
#include "core/text.hpp"
#include "table/table.hpp"
#include "tests/table_fixture.hpp"

namespace moetune {
namespace {

// Runs `work` in a child process after `prepare`; true when it throws Error(io).
bool fails_to_write_in_child(const std::function<void()>& prepare,
                             const std::function<void()>& work) {
  const pid_t child = ::fork();
  if (child == 0) {
    int code = 1;
    try {
      prepare();
      work();
    } catch (const Error& error) {
      code = error.kind() == ErrorKind::io ? 0 : 2;
    }
    ::_exit(code);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

}  // namespace

TEST_CASE("write_table: merges with a table of the same identity") {
  const TemporaryFolder directory;
  Table old = sample_table();
  old.identity.driver = "570.1";
  old.identity.shape.model = "custom";
  write_table(directory.path(), old);
  Table fresh = sample_table();
  fresh.entries.erase(1);
  fresh.entries.erase(8);
  fresh.entries.at(64).timing.median_us = 80;
  fresh.entries[128] = entry_at(fresh.identity, 128, 100);
  const Table merged = read_table(write_table(directory.path(), fresh));
  CHECK(merged.entries.size() == 4);
  CHECK(merged.entries.at(64).timing.median_us == 80);
  CHECK(merged.entries.at(1).timing.median_us == 21.5);
  CHECK(merged.identity.driver == fresh.identity.driver);
  CHECK(std::distance(std::filesystem::directory_iterator(directory.path()), {}) == 1);
}

TEST_CASE(
    "write_table: what an interrupted search left out is missing until any search fills it in") {
  const TemporaryFolder directory;
  Table interrupted = sample_table();
  interrupted.entries.erase(1);
  interrupted.missing = {1, 4096};
  CHECK(read_table(write_table(directory.path(), interrupted)).missing == interrupted.missing);
  const std::set<std::int64_t> left{4096};
  CHECK(read_table(write_table(directory.path(), sample_table())).missing == left);
  Table rest = sample_table();
  rest.entries = {{4096, entry_at(rest.identity, 4096, 900)}};
  const Table whole = read_table(write_table(directory.path(), rest));
  CHECK(whole.complete());
  CHECK(whole.entries.size() == 4);
}

TEST_CASE("write_table: of older kernels the entries stay whose variants have not changed") {
  const TemporaryFolder directory;
  Table old = sample_table();
  for (Step& step : old.entries.at(8).plan.steps) step.variant = "hopper";
  const std::string path = write_table(directory.path(), old);
  const std::string kept = read_file(path);
  Table fresh = sample_table();
  fresh.identity.kernels.variants["hopper"] = "new";
  fresh.entries.erase(1);
  fresh.entries.erase(8);
  write_table(directory.path(), fresh);
  const Table merged = read_table(path);
  CHECK(merged.entries.size() == 2);
  CHECK(merged.entries.contains(1));
  CHECK(merged.missing == std::set<std::int64_t>{8});
  CHECK(merged.identity.kernels.variants == fresh.identity.kernels.variants);
  CHECK(read_file(path + ".bak-1") == kept);
  // Nothing is lost where what has changed is in no plan.
  fresh.identity.kernels.variants["hopper"] = "newer";
  fresh.identity.kernels.small_kernels = "newer";
  write_table(directory.path(), fresh);
  CHECK(read_table(path).entries.size() == 2);
  CHECK_FALSE(std::filesystem::exists(path + ".bak-2"));
}

TEST_CASE("write_table: a table of another identity, or what is no table, is kept beside") {
  const TemporaryFolder directory;
  const Table fresh = sample_table();
  for (const auto& change : std::vector<std::function<void(Table&)>>{
           [](Table& table) { table.identity.kernels.variants["portable"] = "other"; },
           [](Table& table) { table.identity.nvrtc = "12.8"; },
           [](Table& table) { table.routing = parse_routing("hot:4"); }}) {
    Table other = sample_table();
    other.entries.erase(8);
    change(other);
    const std::string path = write_table(directory.path(), other);
    const std::string kept = read_file(path);
    std::filesystem::remove(path + ".bak-1");
    std::ofstream(path) << kept;
    write_table(directory.path(), fresh);
    CHECK(read_file(path + ".bak-1") == kept);
    CHECK(read_table(path).entries.size() == 3);
    std::filesystem::remove(path);
  }
  const std::string path = directory.file(table_file_name(fresh.identity));
  std::ofstream(path) << "{ torn";
  write_table(directory.path(), fresh);
  CHECK(read_file(path + ".bak-2") == "{ torn");
}

TEST_CASE("write_table: what a reader would refuse is not written") {
  const TemporaryFolder directory;
  const std::string path = write_table(directory.path(), sample_table());
  const std::string before = read_file(path);
  Table bad = sample_table();
  bad.entries.at(8).timing.median_us = std::numeric_limits<double>::quiet_NaN();
  CHECK_THROWS_WITH_AS(write_table(directory.path(), bad), doctest::Contains("entries.8.median_us"),
                       Error);
  bad.entries.at(8).timing.median_us = std::numeric_limits<double>::infinity();
  CHECK_THROWS_AS(write_table(directory.path(), bad), Error);
  CHECK(read_file(path) == before);
}

TEST_CASE("write_table: writers at the same time lose no entry") {
  const TemporaryFolder directory;
  std::vector<std::thread> writers;
  for (int i = 0; i < 8; ++i) {
    writers.emplace_back([&, i] {
      Table table = sample_table();
      table.entries = {{100 + i, table.entries.at(8)}};
      write_table(directory.path(), table);
    });
  }
  for (std::thread& writer : writers) writer.join();
  CHECK(read_table(directory.file(table_file_name(sample_table().identity))).entries.size() == 8);
}

TEST_CASE("write_table: a full disk is an error and the old table stays") {
  const TemporaryFolder directory;
  const std::string path = write_table(directory.path(), sample_table());
  const std::string before = read_file(path);
  Table merged = sample_table();
  merged.entries[128] = merged.entries.at(8);
  Table other = sample_table();
  other.identity.kernels.variants["portable"] = "other";
  for (const Table& table : {merged, other}) {
    CHECK(fails_to_write_in_child(
        [] {
          std::signal(SIGXFSZ, SIG_IGN);
          const rlimit limit{1000, 1000};
          ::setrlimit(RLIMIT_FSIZE, &limit);
        },
        [&] { write_table(directory.path(), table); }));
    CHECK(read_file(path) == before);
    CHECK(std::distance(std::filesystem::directory_iterator(directory.path()), {}) == 1);
  }
}

TEST_CASE("write_table: a directory that cannot be written is an error and the old table stays") {
  const TemporaryFolder directory;
  const std::string path = write_table(directory.path(), sample_table());
  const std::string before = read_file(path);
  CHECK_THROWS_AS(write_table(path + "/below-a-file", sample_table()), Error);
  ::chmod(directory.path().c_str(), 0555);
  CHECK(fails_to_write_in_child(
      [] {
        if (::geteuid() == 0 && ::setuid(65534) != 0) ::_exit(3);  // root writes anywhere
      },
      [&] { write_table(directory.path(), sample_table()); }));
  ::chmod(directory.path().c_str(), 0755);
  CHECK(read_file(path) == before);
}

}  // namespace moetune
