// The search command end to end, offline: real compilation, predicted times.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/text.hpp"
#include "tests/temporary_folder.hpp"

using namespace moetune;
using Json = nlohmann::ordered_json;
namespace fs = std::filesystem;

namespace {

const std::string kStem = "E=8,N=256,H=256,topk=2,device_name=NVIDIA_H200";

// A folder for outputs and compiled kernels, and searches that write into it.
struct Search {
  TemporaryFolder temporary;
  const std::string& folder = temporary.path();
  std::string out_dir = folder;
  std::vector<std::string> layer{"--shape", "8,2,256,256", "--device", "offline:h200"};

  std::string table() const { return folder + "/configs/tuned/NVIDIA_H200/" + kStem + ".json"; }
  std::string journal() const {
    return folder + "/results/NVIDIA_H200/" + kStem + ".offline.jsonl";
  }
  std::string out() const { return read_file(folder + "/stdout"); }
  std::string err() const { return read_file(folder + "/stderr"); }

  pid_t start(const std::vector<std::string>& more) const {
    std::vector<std::string> words{MOETUNE_PROGRAM, "search",  "--out",
                                   out_dir,         "--cache", folder + "/cache"};
    words.insert(words.end(), layer.begin(), layer.end());
    words.insert(words.end(), more.begin(), more.end());
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    const pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      dup2(open((folder + "/stdout").c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644), STDOUT_FILENO);
      dup2(open((folder + "/stderr").c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644), STDERR_FILENO);
      execv(argv[0], argv.data());
      _exit(127);
    }
    return child;
  }
  // The exit code, or -N for death by signal N.
  static int wait_for(pid_t child) {
    int status = 0;
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }
  int run(const std::vector<std::string>& more) const { return wait_for(start(more)); }
  // Waits until the journal has `num` trials, or the child has ended.
  void wait_for_trials(pid_t child, int num) const {
    siginfo_t ended{};
    while (num_trials() < num) {
      REQUIRE(waitid(P_PID, static_cast<id_t>(child), &ended, WEXITED | WNOHANG | WNOWAIT) == 0);
      if (ended.si_pid != 0) return;
      usleep(2000);
    }
  }
  int num_trials() const {
    std::ifstream file(journal());
    int num = 0;
    for (std::string line; std::getline(file, line);) {
      num += line.find("\"record\":\"trial\"") != std::string::npos;
    }
    return num;
  }
  Json entries() const { return Json::parse(read_file(table())).at("entries"); }
};

bool holds(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

const std::vector<std::string> kFew{"--random", "4", "--tokens", "1,64"};

std::vector<std::string> with(std::vector<std::string> words, const std::string& word) {
  words.push_back(word);
  return words;
}

}  // namespace

TEST_CASE("search command: an offline search writes a table and a journal that say predicted") {
  const Search search;
  REQUIRE(search.run(kFew) == 0);
  CHECK(holds(search.out(), "predicted"));
  CHECK(holds(search.out(), search.table()));
  CHECK_FALSE(holds(search.out() + search.err(), "measured in this run"));
  const Json table = Json::parse(read_file(search.table()));
  CHECK(table.at("missing").empty());
  CHECK(holds(table.at("command"), "moe-tune search --out "));
  REQUIRE(table.at("entries").size() == 2);
  for (const Json& entry : table.at("entries")) CHECK(entry.at("source") == "predicted");
  CHECK(search.num_trials() > 16);
}

TEST_CASE("search command: --json prints one document and nothing else on stdout") {
  const Search search;
  REQUIRE(search.run(with(kFew, "--json")) == 0);
  const Json json = Json::parse(search.out());
  CHECK(json.at("table") == search.table());
  CHECK(json.at("interrupted") == false);
}

TEST_CASE("search command: offline, memory can be made small, error and energy cannot") {
  const Search search;
  REQUIRE(search.run({"--random", "4", "--tokens", "64", "--objective", "memory", "--json"}) == 0);
  const Json json = Json::parse(search.out());
  CHECK(json.at("objective") == "memory");
  const Json table = Json::parse(read_file(search.table()));
  CHECK(table.at("objective") == "memory");
  CHECK(table.at("entries").at("64").at("workspace_bytes") > 64 * 2 * 256 * 2);
  for (const char* objective : {"error", "energy"}) {
    CHECK(search.run({"--random", "4", "--tokens", "64", "--objective", objective}) == 3);
    CHECK(holds(search.err(), std::string("--objective ") + objective + " needs a GPU"));
  }
  CHECK(search.run({"--objective", "speed"}) == 2);
}

TEST_CASE("search command: --deterministic leaves out points that add in no fixed order") {
  const Search search;
  REQUIRE(search.run({"--random", "30", "--tokens", "64"}) == 0);
  CHECK(holds(read_file(search.journal()), "\"FUSE_COMBINE\":1"));
  REQUIRE(search.run({"--random", "30", "--tokens", "64", "--deterministic", "--json"}) == 0);
  CHECK_FALSE(holds(read_file(search.journal()), "\"FUSE_COMBINE\":1"));
  CHECK(holds(read_file(search.journal()), "\"deterministic\":true"));
}

TEST_CASE("search command: Ctrl-C ends it with 130, and --resume ends as if nothing happened") {
  const Search whole;
  REQUIRE(whole.run(kFew) == 0);
  const Search search;
  const pid_t child = search.start(kFew);
  search.wait_for_trials(child, 3);
  kill(child, SIGINT);
  CHECK(Search::wait_for(child) == 130);
  CHECK(holds(search.err(), "--resume"));
  const int known = search.num_trials();
  CHECK(known < whole.num_trials());
  if (fs::exists(search.table())) {
    CHECK_FALSE(Json::parse(read_file(search.table())).at("missing").empty());
  }
  REQUIRE(search.run(with(kFew, "--resume")) == 0);
  CHECK(search.num_trials() == whole.num_trials());
  CHECK(search.entries() == whole.entries());
  CHECK(Json::parse(read_file(search.table())).at("missing").empty());
}

TEST_CASE("search command: after kill -9 --resume repeats at most the trial in flight") {
  const Search whole;
  REQUIRE(whole.run(kFew) == 0);
  const Search search;
  const pid_t child = search.start(kFew);
  search.wait_for_trials(child, 12);
  kill(child, SIGKILL);
  CHECK(Search::wait_for(child) == -SIGKILL);
  REQUIRE(search.run(with(kFew, "--resume")) == 0);
  CHECK(search.num_trials() == whole.num_trials());
  CHECK(search.entries() == whole.entries());
}

TEST_CASE("search command: a second search keeps the first one's journal") {
  const Search search;
  const std::vector<std::string> one{"--random", "1", "--tokens", "1"};
  REQUIRE(search.run(one) == 0);
  const std::string first = read_file(search.journal());
  REQUIRE(search.run(one) == 0);
  CHECK(read_file(search.journal() + ".bak-1") == first);
}

TEST_CASE("search command: offline, a table with measured times is left as it is") {
  const Search search;
  const std::vector<std::string> one{"--random", "1", "--tokens", "1"};
  REQUIRE(search.run(one) == 0);
  std::string table = read_file(search.table());
  const std::string predicted = "\"source\": \"predicted\"";
  table.replace(table.find(predicted), predicted.size(), "\"source\": \"measured\"");
  write_file_atomically(search.table(), table);
  REQUIRE(search.run(one) == 0);
  CHECK(read_file(search.table()) == table);
  CHECK(holds(search.err(), "holds measured times"));
  CHECK(fs::exists(search.folder + "/offline/configs/tuned/NVIDIA_H200/" + kStem + ".json"));
}

TEST_CASE("search command: an output folder that cannot be written is an error before the work") {
  Search search;
  std::ofstream(search.folder + "/file") << "x";
  search.out_dir = search.folder + "/file";
  CHECK(search.run(kFew) == 2);
  CHECK(search.err().starts_with("error: cannot write to " + search.out_dir));
  CHECK_FALSE(fs::exists(search.folder + "/cache"));
}

TEST_CASE("search command: misuse is one line, exit code 2, and harms nothing") {
  const Search search;
  REQUIRE(search.run({"--random", "1", "--tokens", "1"}) == 0);
  const std::string table = read_file(search.table());
  const std::string journal = read_file(search.journal());
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases{
      {{"--grid", "--random", "3"}, "--grid"},
      {{"--random", "0"}, "--random"},
      {{"--budget", "10x"}, "--budget 10x"},
      {{"--fp8", "maybe"}, "maybe"},
      {{"--variant", "portabel"}, "portable"},
      {{"--start", "table"}, "--ablation"},
      {{"--guided", "--grid"}, "--guided"},
      {{"--strategy", "giuded"}, "guided"},
      {{"--strategy", "random"}, "--random N"},
      {{"--ablation", "--start", "BLOCK_SIZE_M"}, "NAME=VALUE"},
      {{"--random", "1", "--tokens", "1", "--resume", "--seed", "7"}, "seed"}};
  for (const auto& [words, part] : cases) {
    CAPTURE(part);
    CHECK(search.run(words) == 2);
    const std::string err = search.err();
    CAPTURE(err);
    CHECK(err.starts_with("error: "));
    CHECK(std::count(err.begin(), err.end(), '\n') == 1);
    CHECK(holds(err, part));
  }
  CHECK(read_file(search.table()) == table);
  CHECK(read_file(search.journal()) == journal);
}
