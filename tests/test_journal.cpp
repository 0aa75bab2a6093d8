#include <doctest/doctest.h>
#include <sys/resource.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <string>

#include "core/error.hpp"
#include "core/text.hpp"
#include "tests/temporary_folder.hpp"
#include "tune/journal.hpp"

using namespace moetune;
using Json = nlohmann::ordered_json;
namespace fs = std::filesystem;

namespace {

struct Folder : TemporaryFolder {
  std::string file() const { return path() + "/results/GPU/table.jsonl"; }
};

const Json kIdentity{{"gpu", "NVIDIA H200"}, {"seed", 0}};

JournalTrial sample(int value, int round = 0) {
  Trial trial;
  trial.stage = Stage::gemm1;
  trial.num_tokens = 8;
  trial.plan = Plan{{{"gemm1", "portable", Point({{"BLOCK_SIZE_M", value}})}}};
  trial.timing = {.median_us = 1.0 / 3 + value, .p10_us = 1, .p90_us = 2, .num_samples = 20};
  return {trial, round, value / 7.0};
}

void write_samples(const std::string& path, int num) {
  Journal journal(path, kIdentity, "search", false);
  for (int i = 1; i <= num; ++i) journal.append(sample(i));
}

std::string error_of(const std::string& path, const Json& identity, ErrorKind kind) {
  try {
    Journal journal(path, identity, "search", true);
  } catch (const Error& error) {
    CHECK(error.kind() == kind);
    return error.what();
  }
  FAIL("no error");
  return {};
}

}  // namespace

TEST_CASE("journal: what was appended is read back exactly") {
  const Folder folder;
  write_samples(folder.file(), 2);
  const JournalContents contents = read_journal(folder.file());
  CHECK(contents.header.at("identity") == kIdentity);
  CHECK(contents.warnings.empty());
  REQUIRE(contents.trials.size() == 2);
  CHECK(contents.trials[1].trial.plan == sample(2).trial.plan);
  CHECK(contents.trials[1].trial.timing.median_us == sample(2).trial.timing.median_us);
  CHECK(contents.trials[1].elapsed_s == sample(2).elapsed_s);
}

TEST_CASE("journal: a header with one hash for all kernels is read as one with each variant's") {
  const Folder folder;
  Json old = kIdentity;
  old["kernels_hash"] = "a4ae3c12914765b8dd005b209928fc4e";
  old["variants"] = Json::array({"hopper"});
  { Journal journal(folder.file(), old, "search", false); }
  const Json known = read_journal(folder.file()).header.at("identity");
  CHECK_FALSE(known.contains("kernels_hash"));
  CHECK(known.at("variant_hashes").size() == 2);  // the reference point's too
  CHECK(known.at("variant_hashes").contains("portable"));
  CHECK_NOTHROW(Journal(folder.file(), known, "search", true));  // and is gone on with
  old["kernels_hash"] = "0a86";
  { Journal journal(folder.file(), old, "search", false); }
  const Json older = read_journal(folder.file()).header.at("identity");
  CHECK(older.at("variant_hashes") == Json{{"hopper", "0a86"}, {"portable", "0a86"}});
  CHECK(older.at("small_kernels") == "0a86");
}

TEST_CASE("journal: a trial whose error is not a number is read back") {
  const Folder folder;
  JournalTrial wrong = sample(1);
  wrong.trial.status = TrialStatus::wrong_result;
  wrong.trial.rel_err = std::numeric_limits<double>::quiet_NaN();
  wrong.trial.reason = "bytes that are not UTF-8: \xff";
  { Journal(folder.file(), kIdentity, "search", false).append(wrong); }
  const JournalContents contents = read_journal(folder.file());
  CHECK(contents.warnings.empty());
  REQUIRE(contents.trials.size() == 1);
  CHECK(contents.trials[0].trial.status == TrialStatus::wrong_result);
  CHECK(!(contents.trials[0].trial.rel_err <= 1));
}

TEST_CASE("journal: a torn last line is named, cut off, and appending goes on") {
  const Folder folder;
  write_samples(folder.file(), 3);
  fs::resize_file(folder.file(), fs::file_size(folder.file()) - 9);
  {
    Journal journal(folder.file(), kIdentity, "search --resume", true);
    REQUIRE(journal.notes().size() == 1);
    CHECK(journal.notes()[0] == folder.file() + ":4: torn line skipped");
    CHECK(journal.take_known().size() == 2);
    journal.append(sample(9));
  }
  const JournalContents contents = read_journal(folder.file());
  CHECK(contents.warnings.empty());
  REQUIRE(contents.trials.size() == 3);
  CHECK(contents.trials[2].trial.plan == sample(9).trial.plan);
}

TEST_CASE("journal: bad lines in the middle are named and skipped") {
  const Folder folder;
  write_samples(folder.file(), 1);
  std::ofstream(folder.file(), std::ios::app) << "{\"record\": \"trial\"}\nnonsense\n[]\n";
  const JournalContents contents = read_journal(folder.file());
  CHECK(contents.trials.size() == 1);
  REQUIRE(contents.warnings.size() == 3);
  CHECK(contents.warnings[0].starts_with(folder.file() + ":3: line skipped: "));
  CHECK(contents.warnings[1] == folder.file() + ":4: line skipped: not JSON");
}

TEST_CASE("journal: without resume an earlier journal is renamed, never overwritten") {
  const Folder folder;
  write_samples(folder.file(), 1);
  const std::string first = read_file(folder.file());
  write_samples(folder.file(), 2);
  const std::string second = read_file(folder.file());
  write_samples(folder.file(), 3);
  CHECK(read_file(folder.file() + ".bak-1") == first);
  CHECK(read_file(folder.file() + ".bak-2") == second);
  CHECK(read_journal(folder.file()).trials.size() == 3);
}

TEST_CASE("journal: resuming another search is an error that names the difference and the remedy") {
  const Folder folder;
  write_samples(folder.file(), 1);
  const std::string before = read_file(folder.file());
  const std::string message =
      error_of(folder.file(), Json{{"gpu", "NVIDIA H200"}, {"seed", 7}}, ErrorKind::input);
  CHECK(message.find("its seed is 0 and this search's is 7") != std::string::npos);
  CHECK(message.find("without --resume") != std::string::npos);
  CHECK(read_file(folder.file()) == before);
}

TEST_CASE("journal: a file that is no journal is refused and kept") {
  const Folder folder;
  fs::create_directories(fs::path(folder.file()).parent_path());
  std::ofstream(folder.file()) << "{\"a\": 1}\n";
  CHECK(error_of(folder.file(), kIdentity, ErrorKind::input).find(":1: not a search journal") !=
        std::string::npos);
  CHECK(read_file(folder.file()) == "{\"a\": 1}\n");
}

TEST_CASE("journal: a kill while the header was written leaves nothing to resume, and no error") {
  const Folder folder;
  fs::create_directories(fs::path(folder.file()).parent_path());
  std::ofstream(folder.file()) << "{\"record\": \"hea";
  Journal journal(folder.file(), kIdentity, "search", true);
  journal.append(sample(1));
  CHECK(read_journal(folder.file()).trials.size() == 1);
}

TEST_CASE("journal: two searches do not write the same file") {
  const Folder folder;
  Journal journal(folder.file(), kIdentity, "search", false);
  for (const bool resume : {false, true}) {
    CHECK_THROWS_WITH_AS(Journal(folder.file(), kIdentity, "search", resume),
                         doctest::Contains("another search"), Error);
  }
  journal.append(sample(1));
  CHECK(read_journal(folder.file()).trials.size() == 1);
}

TEST_CASE("journal: a path that cannot be written is an error before any work") {
  const Folder folder;
  std::ofstream(folder.path() + "/file") << "x";
  try {
    Journal journal(folder.path() + "/file/table.jsonl", kIdentity, "search", false);
    FAIL("no error");
  } catch (const Error& error) {
    CHECK(error.kind() == ErrorKind::io);
    CHECK(std::string(error.what()).find(folder.path() + "/file/table.jsonl") != std::string::npos);
  }
}

TEST_CASE("journal: a full disk is one clear error and leaves whole lines") {
  const Folder folder;
  std::signal(SIGXFSZ, SIG_IGN);
  rlimit old{};
  getrlimit(RLIMIT_FSIZE, &old);
  int num_written = 0;
  {
    Journal journal(folder.file(), kIdentity, "search", false);
    const rlimit small{2000, old.rlim_max};
    setrlimit(RLIMIT_FSIZE, &small);
    std::string message;
    try {
      for (; num_written < 100; ++num_written) journal.append(sample(num_written));
    } catch (const Error& error) {
      CHECK(error.kind() == ErrorKind::io);
      message = error.what();
    }
    setrlimit(RLIMIT_FSIZE, &old);
    CHECK(message.find(folder.file()) != std::string::npos);
    CHECK(message.find("--resume") != std::string::npos);
  }
  REQUIRE(num_written > 0);
  REQUIRE(num_written < 100);
  const JournalContents contents = read_journal(folder.file());
  CHECK(contents.warnings.empty());
  CHECK(contents.trials.size() == static_cast<std::size_t>(num_written));
}

TEST_CASE("journal: a device that is full from the start is an error") {
  const Folder folder;
  fs::create_directories(fs::path(folder.file()).parent_path());
  fs::create_symlink("/dev/full", folder.file());
  CHECK_THROWS_WITH_AS(Journal(folder.file(), kIdentity, "search", false),
                       doctest::Contains("No space left"), Error);
}
