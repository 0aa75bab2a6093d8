// Runs the program: `compile` on a small layer, which needs the toolkit but no GPU.
#include <doctest/doctest.h>
#include <fmt/format.h>
#include <sys/wait.h>

#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "core/text.hpp"
#include "tests/temporary_folder.hpp"

using namespace moetune;
namespace fs = std::filesystem;

namespace {

// A cache directory of its own, removed at its end.
struct Workspace {
  // Runs `moe-tune compile` and keeps what it printed.
  int run(const std::string& arguments) {
    const int status =
        std::system(fmt::format("'{}' compile --shape 8,2,256,256 {} >'{}' 2>'{}'", MOETUNE_PROGRAM,
                                arguments, folder.file("out"), folder.file("err"))
                        .c_str());
    out = read_file(folder.file("out"));
    err = read_file(folder.file("err"));
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  std::string cache() const { return folder.file("cache"); }

  TemporaryFolder folder;
  std::string out;
  std::string err;
};

bool holds(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("compile: fills the cache once for each architecture; the same command finds it there") {
  Workspace work;
  const auto compile = [&] {
    REQUIRE_MESSAGE(
        work.run(fmt::format("--arch sm_80,sm_90,sm_90a --tokens 16 --sample 2 --seed 7 "
                             "--json --cache {}",
                             work.cache())) == 0,
        work.err);
    return parse_json(work.out, "out").at("archs");
  };
  const auto first = compile();
  REQUIRE(first.size() == 2);
  CHECK(first[0].at("arch") == "sm_80");
  CHECK(first[1].at("arch") == "sm_90a");  // what a search on that GPU asks for
  // Two of each stage and variant, and those around them: sm_90a has a variant more.
  CHECK(first[0].at("num_kernels").get<int>() > 4);
  CHECK(first[1].at("num_kernels").get<int>() > first[0].at("num_kernels").get<int>());
  int sum = 0;
  for (const auto& arch : first) {
    sum += arch.at("num_kernels").get<int>();
    CHECK(arch.at("compiled") == arch.at("num_kernels"));
    CHECK(arch.at("failed") == 0);
    CHECK(arch.at("min_registers") > 0);
    CHECK(arch.at("max_registers") <= 255);
  }
  for (const auto& arch : compile()) {
    CHECK(arch.at("compiled") == 0);
    CHECK(arch.at("cached") == arch.at("num_kernels"));
  }
  CHECK(std::distance(fs::directory_iterator(work.cache()), {}) == sum);
}

TEST_CASE("compile: an architecture that cannot run the dtype is skipped, unless none can") {
  Workspace work;
  const std::string common =
      "--dtype fp8_block --stage gemm2 --tokens 16 --sample 1 --cache " + work.cache();
  REQUIRE_MESSAGE(work.run(common + " --arch sm_80,sm_89") == 0, work.err);
  CHECK(holds(work.err, "sm_80: no kernel runs fp8_block"));
  CHECK(holds(work.out, "\nsm_80 "));
  CHECK(holds(work.out, "\nsm_89 "));
  CHECK(work.run(common + " --arch sm_80") == 2);
  CHECK(work.err.starts_with("error: no kernel runs fp8_block on sm_80"));
}

TEST_CASE("compile: bad arguments are one line and exit code 2") {
  Workspace work;
  CHECK(work.run("--arch sm_1") == 2);
  CHECK(work.err.starts_with("error: unknown architecture 'sm_1'"));
  CHECK(work.run("") == 2);
  CHECK(holds(work.err, "--arch"));
  CHECK(work.run("--arch sm_80 --stage gemm3") == 2);
  CHECK(holds(work.err, "gemm3"));
  CHECK(work.out.empty());
}

TEST_CASE("compile: a cache that cannot be written is told, with exit code 2") {
  Workspace work;
  write_file_atomically(work.folder.file("file"), "in the way");
  const std::string cache = work.folder.file("file/cache");
  CHECK(work.run("--arch sm_80 --stage gemm2 --tokens 16 --sample 1 --cache " + cache) == 2);
  CHECK(holds(work.err, "could not be kept in " + cache));
  CHECK(holds(work.err, "--cache"));
}
