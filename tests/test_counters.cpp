// What ncu says, and what is said where it does not run. Without a GPU and without ncu: the sample
// in tests/data/ncu_raw.csv was made by hand after the layout of ncu 2025.3, and fake ones are
// scripts.
#include <doctest/doctest.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include <chrono>
#include <cmath>
#include <fstream>
#include <string>

#include "core/counters.hpp"
#include "core/text.hpp"
#include "tests/table_fixture.hpp"

namespace moetune {
namespace {

bool holds(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

const std::string kSample = std::string(MOETUNE_SOURCE_DIR) + "/tests/data/ncu_raw.csv";

// A program "ncu" in a folder of its own.
class FakeNcu {
 public:
  explicit FakeNcu(const std::string& script) {
    std::ofstream(path()) << "#!/bin/sh\n" << script << "\n";
    chmod(path().c_str(), 0755);
  }
  std::string path() const { return directory_.file("ncu"); }
  const std::string& folder() const { return directory_.path(); }
  std::string file(const std::string& name) const { return directory_.file(name); }
  NcuRun run(int timeout_s = 20) const { return run_ncu(path(), "/bin/true", {"a b"}, timeout_s); }

 private:
  TemporaryFolder directory_;
};

}  // namespace

TEST_CASE("counters: ncu's CSV is read between other lines, thousands separators and all") {
  const auto kernels = parse_ncu_csv(read_file(kSample));
  REQUIRE(kernels.size() == 6);
  CHECK(kernels[1].name == "sort_count");
  CHECK(kernels[1].time_us == doctest::Approx(5.504));
  CHECK(kernels[1].l2_hit_rate() == doctest::Approx(0.75));
  CHECK(kernels[1].sm_mhz == doctest::Approx(1965));
  CHECK(kernels[1].tensor_busy_pct == 0);
  CHECK(kernels[2].name == "void moe_gemm_sm90<\"C, 1\">");
  CHECK(kernels[2].dram_read_bytes == 1.2e9);
  CHECK(kernels[2].dram_write_bytes == 64e6);
  CHECK(kernels[2].grid == 132);
  CHECK(std::isnan(kernels[2].tensor_busy_pct));
  CHECK(l2_hit_rate(kernels) == doctest::Approx(90004000.0 / 100008000.0));
  CHECK(std::isnan(l2_hit_rate({})));
}

TEST_CASE("counters: units with prefixes, a metric that is missing, and one in a metric's place") {
  const auto kernels = parse_ncu_csv(
      "\"ID\",\"Kernel Name\",\"gpu__time_duration.sum\",\"dram__bytes_read.sum\","
      "\"sm__cycles_elapsed.avg.per_second\",\"lts__t_sectors_op_read_lookup_hit.sum\","
      "\"lts__t_sectors_op_read_lookup_miss.sum\"\n"
      "\"\",\"\",\"usecond\",\"Mbyte\",\"cycle/nsecond\",\"sector\",\"sector\"\r\n"
      "\"0\",\"k\",\"12.5\",\"3\",\"1.7\",\"1\",\"3\"\r\n"
      "\"1\",\"broken\",\"12.5\"\n");
  REQUIRE(kernels.size() == 1);
  CHECK(kernels[0].time_us == doctest::Approx(12.5));
  CHECK(kernels[0].dram_read_bytes == doctest::Approx(3e6));
  CHECK(kernels[0].sm_mhz == doctest::Approx(1700));
  CHECK(kernels[0].l2_hit_rate() == doctest::Approx(0.25));
  CHECK(std::isnan(kernels[0].dram_write_bytes));
  CHECK(parse_ncu_csv("\"nothing\",\"of\"\n\"the\",\"kind\"\n").empty());
}

TEST_CASE("counters: a marker begins each call, and a call may have no kernels") {
  const auto calls = split_calls(parse_ncu_csv(read_file(kSample)), "fill_normal_bf16");
  REQUIRE(calls.size() == 3);
  CHECK(calls[0].size() == 2);
  CHECK(calls[1].empty());
  CHECK(calls[2].at(0).name == "combine");
}

TEST_CASE("counters: ncu is looked for where PATH says, and given the program and its arguments") {
  const FakeNcu ncu(fmt::format("printf '%s\\n' \"$@\" > \"$0.args\"; cat '{}'", kSample));
  CHECK(find_ncu("", "/nowhere::" + ncu.folder()) == ncu.path());
  CHECK(find_ncu("/given/ncu", ncu.folder()) == "/given/ncu");
  const NcuRun run = ncu.run();
  CHECK(run.missing == "");
  CHECK(run.kernels.size() == 6);
  const std::string arguments = read_file(ncu.file("ncu.args"));
  CHECK(holds(arguments, "--profile-from-start\noff\n"));
  CHECK(holds(arguments, "--cache-control\nnone\n"));
  CHECK(holds(arguments, "gpu__time_duration.sum,"));
  CHECK(arguments.ends_with("/bin/true\na b\n"));
}

TEST_CASE("counters: without ncu, without leave, or when it fails, one sentence says what to do") {
  CHECK(holds(run_ncu("", "/bin/true", {}, 1).missing, "install Nsight Compute"));
  CHECK(holds(run_ncu("/nowhere/ncu", "/bin/true", {}, 5).missing, "exited with code 127"));
  const NcuRun forbidden = FakeNcu(
                               "echo '==ERROR== ERR_NVGPUCTRPERM - The user does not have "
                               "permission' >&2; exit 1")
                               .run();
  CHECK(forbidden.kernels.empty());
  CHECK(holds(forbidden.missing, "run as root"));
  const NcuRun failed =
      FakeNcu("echo '==ERROR== The application returned an error code (3).'; echo bye; exit 3")
          .run();
  CHECK(holds(failed.missing, "exited with code 3 and said '==ERROR== The application"));
  CHECK(!holds(failed.missing, "\n"));
}

TEST_CASE("counters: a metric that ncu refuses does not cost the others") {
  const FakeNcu ncu(
      fmt::format("case \"$*\" in *sm__pipe_tensor*) echo '==ERROR== Failed to find metric "
                  "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active'; exit 1;; esac\n"
                  "cat '{}'",
                  kSample));
  CHECK(ncu.run().kernels.size() == 6);
}

TEST_CASE("counters: ncu is ended when it hangs, and what it started with it") {
  const FakeNcu ncu("sleep 100 & echo $! > \"$0.pid\"; wait");
  const auto begin = std::chrono::steady_clock::now();
  const NcuRun run = ncu.run(1);
  CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(20));
  CHECK(run.kernels.empty());
  CHECK(holds(run.missing, "did not end within 1 s"));
  std::string pid = read_file(ncu.file("ncu.pid"));
  pid.pop_back();
  std::string command;  // empty where the process is gone, or waits to be reaped
  std::ifstream("/proc/" + pid + "/cmdline") >> command;
  CHECK(command == "");
}

}  // namespace moetune
