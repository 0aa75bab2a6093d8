// `moe-tune report` and `moe-tune merge` as a user meets them.
#include <doctest/doctest.h>
#include <fmt/format.h>
#include <sys/wait.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "core/text.hpp"
#include "table/table.hpp"
#include "tests/table_fixture.hpp"

using namespace moetune;
namespace fs = std::filesystem;

namespace {

const std::string kJournal = MOETUNE_SOURCE_DIR "/tests/data/journals/qwen3-30b-a3b.jsonl";
const std::string kStem = "E=128,N=768,H=2048,topk=8,device_name=NVIDIA_H200";

struct Result {
  int code;
  std::string out, err;
};

Result run(const std::string& arguments) {
  const TemporaryFolder directory;
  const std::string out = directory.file("out"), err = directory.file("err");
  const int status =
      std::system(fmt::format("{} {} >'{}' 2>'{}'", MOETUNE_PROGRAM, arguments, out, err).c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read_file(out), read_file(err)};
}

bool holds(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("report command: writes a page that needs no other file") {
  const TemporaryFolder directory;
  const Result result =
      run(fmt::format("report '{}' --out '{}'", kJournal, directory.file("a.html")));
  CAPTURE(result.err);
  REQUIRE(result.code == 0);
  CHECK(result.out.empty());
  const std::string page = read_file(directory.file("a.html"));
  CHECK(page.starts_with("<!doctype html>"));
  CHECK(page.ends_with("</html>\n"));
  CHECK(holds(page, "Chart.js v3"));
  CHECK(holds(page, "qwen3-30b-a3b bf16 on NVIDIA H200"));
  for (const char* outside : {"<link", " src=", "@TITLE@", "@DATA@", "@SCRIPT@"})
    CHECK_FALSE(holds(page, outside));
}

TEST_CASE("report command: --markdown prints and writes nothing") {
  const TemporaryFolder directory;
  fs::copy_file(kJournal, directory.file("a.jsonl"));
  const Result result = run(fmt::format("report --markdown '{}'", directory.file("a.jsonl")));
  CHECK(result.code == 0);
  CHECK(holds(result.out, "| 64 | "));
  CHECK(std::distance(fs::directory_iterator(directory.path()), {}) == 1);
}

TEST_CASE("report command: takes the table that lies beside the journal") {
  const TemporaryFolder directory;
  const std::string results = directory.file("results/NVIDIA_H200");
  fs::create_directories(results);
  fs::copy_file(kJournal, results + "/" + kStem + ".jsonl");
  Table table = read_table(MOETUNE_SOURCE_DIR "/configs/tuned/NVIDIA_H200/" + kStem + ".json");
  const std::string journal = read_file(kJournal);
  const auto identity = nlohmann::json::parse(journal.substr(0, journal.find('\n'))).at("identity");
  for (auto& [name, hash] : table.identity.kernels.variants) hash = identity.at("kernels_hash");
  table.entries.at(1).timing.median_us = 12345.6;
  write_table(directory.file("configs/tuned/NVIDIA_H200"), table);
  const std::string command = fmt::format("report --markdown '{}/{}.jsonl'", results, kStem);
  CHECK(holds(run(command).out, "| 1 | 12345.6 | "));

  table.identity.kernels.variants["portable"] = "another";
  write_table(directory.file("configs/tuned/NVIDIA_H200"), table);
  const Result other = run(command);
  CHECK(other.code == 0);
  CHECK_FALSE(holds(other.out, "12345.6"));
  CHECK(holds(other.err, "its hash of portable is another"));
}

TEST_CASE("report command: what is no journal, and a page that cannot be written, are one line") {
  const TemporaryFolder directory;
  std::ofstream(directory.file("no.jsonl")) << "{}\n";
  const Result none = run(fmt::format("report '{}'", directory.file("no.jsonl")));
  CHECK(none.code == 2);
  CHECK(holds(none.err, "not a search journal"));
  const Result full = run(fmt::format("report '{}' --out /dev/full", kJournal));
  CHECK(full.code == 2);
  CHECK(holds(full.err, "No space left on device"));
}

TEST_CASE("report command: --pareto of what nobody measured says what would measure it") {
  const Result none = run(fmt::format("report --markdown --pareto time,energy '{}'", kJournal));
  CHECK(none.code == 2);
  CHECK(holds(none.err, "no layer has both time and energy"));
  CHECK(holds(none.err, "--objective energy"));
  const Result both = run(fmt::format("report --markdown --pareto error,time '{}/{}.jsonl'",
                                      MOETUNE_SOURCE_DIR "/results/NVIDIA_H200", kStem));
  CHECK(both.code == 0);
  CHECK(holds(both.out, "Trade-off of error and time"));
}

TEST_CASE("merge command: shards in any order, what was there before takes part") {
  const TemporaryFolder directory;
  Table one = sample_table(), two = sample_table();
  one.entries.erase(64);
  two.entries.erase(1);
  two.entries[128] = entry_at(two.identity, 128, 200);
  write_table(directory.file("one/configs/tuned/NVIDIA_H200"), one);
  const std::string name =
      fs::path(write_table(directory.file("two/configs/tuned/NVIDIA_H200"), two)).filename();
  fs::create_directories(directory.file("two/results/NVIDIA_H200"));
  fs::copy_file(kJournal, directory.file("two/results/NVIDIA_H200/E=any.jsonl"));

  const auto merge = [&](const std::string& out, const std::string& inputs) {
    const Result result = run(fmt::format("merge '{}' {}", directory.file(out), inputs));
    CAPTURE(result.err);
    CHECK(result.code == 0);
    return read_file(directory.file(out) + "/configs/tuned/NVIDIA_H200/" + name);
  };
  const std::string a = "'" + directory.file("one") + "'", b = "'" + directory.file("two") + "'";
  const std::string forth = merge("out", a + " " + b);
  CHECK(forth == merge("back", b + " " + a));
  CHECK(read_table(directory.file("out/configs/tuned/NVIDIA_H200/" + name)).entries.size() == 4);
  CHECK(fs::exists(directory.file("out/results/NVIDIA_H200/" + kStem + ".jsonl")));
  // One by one is the same as at once.
  merge("steps", a);
  CHECK(merge("steps", b) == forth);
  CHECK(merge("steps", b) == forth);
}

TEST_CASE("merge command: what does not belong together is refused, and nothing is touched") {
  const TemporaryFolder directory;
  Table table = sample_table();
  write_table(directory.file("one"), table);
  table.entries.erase(1);
  const std::string before =
      read_file(write_table(directory.file("out/configs/tuned/NVIDIA_H200"), table));
  table.identity.kernels.variants["portable"] = "4567";
  const std::string path = write_table(directory.file("two"), table);
  const Result result = run(fmt::format("merge '{}' '{}' '{}'", directory.file("out"),
                                        directory.file("one"), directory.file("two")));
  CHECK(result.code == 2);
  CHECK(holds(result.err, "kernels of portable: "));
  CHECK(holds(result.err, path));
  CHECK(read_file(directory.file("out/configs/tuned/NVIDIA_H200/") +
                  fs::path(path).filename().string()) == before);

  fs::create_directories(directory.file("empty"));
  CHECK(run(fmt::format("merge '{}' '{}'", directory.file("out"), directory.file("empty"))).code ==
        2);
}
