// `moe-tune bench` as a user meets it, offline so that the outcome is the same with and without a
// GPU.
#include <doctest/doctest.h>
#include <fmt/format.h>
#include <sys/wait.h>

#include <cstdlib>
#include <fstream>

#include "core/text.hpp"
#include "jit/compiler.hpp"
#include "table/table.hpp"
#include "tests/table_fixture.hpp"

namespace moetune {
namespace {

using Json = nlohmann::ordered_json;

struct Result {
  int code;
  std::string out, err;
};

// With a cubin cache of its own, shared by the runs of one test.
class Bench {
 public:
  Result operator()(const std::string& arguments) const {
    const std::string out = directory_.file("out"), err = directory_.file("err");
    const std::string command =
        fmt::format("{} bench --cache '{}' {} >'{}' 2>'{}'", MOETUNE_PROGRAM,
                    directory_.file("cubins"), arguments, out, err);
    const int status = std::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read_file(out), read_file(err)};
  }
  std::string file(const std::string& name) const { return directory_.file(name); }

 private:
  TemporaryFolder directory_;
};

bool holds(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

Table current_table() {
  Table table = sample_table();
  table.identity.nvrtc = nvrtc_version();
  table.identity.kernels = kernel_hashes();
  return table;
}

const std::string kLayer = "--shape 8,2,512,256 --device offline:h200 ";

}  // namespace

TEST_CASE("bench command: without a table the reference point is timed, and every time predicted") {
  const Bench bench;
  const Result result =
      bench(fmt::format("{} --tokens 8,1 --tables '{}'", kLayer, bench.file("none")));
  CAPTURE(result.err);
  CHECK(result.code == 0);
  CHECK(holds(result.out, "custom-8-2-512-256"));
  CHECK(holds(result.out, "fallback  predicted"));
  CHECK_FALSE(holds(result.out, "measured\n"));
  CHECK(holds(result.err, "no table"));
}

TEST_CASE("bench command: a table is looked up by GPU and layer, and the step is said") {
  const Bench bench;
  Table table = current_table();
  table.entries.at(8).plan.steps[0].point.set("NUM_STAGES", 3);
  write_table(bench.file("tuned/NVIDIA_H200"), table);
  const Result result =
      bench(fmt::format("{} --tokens 8,10,64 --tables '{}' --json", kLayer, bench.file("tuned")));
  CAPTURE(result.err);
  CHECK(result.code == 0);
  const Json rows = parse_json(result.out, "stdout").at("rows");
  REQUIRE(rows.size() == 3);
  CHECK(rows[0].at("lookup") == "exact");
  CHECK(rows[1].at("lookup") == "nearest 8");
  CHECK(rows[2].at("lookup") == "exact");
  CHECK(holds(rows[1].at("gemm1"), "NUM_STAGES=3"));
  CHECK(holds(rows[2].at("gemm1"), "NUM_STAGES=2"));
  for (const Json& row : rows) {
    CHECK(row.at("source") == "predicted");
    CHECK(row.at("rel_err").is_null());
    CHECK(row.at("layer_us").get<double>() > 0);
  }
}

TEST_CASE("bench command: a table of another GPU or layer is refused, a stale one used and said") {
  const Bench bench;
  Table table = sample_table();  // of other kernels
  const std::string path = write_table(bench.file("tables"), table);
  const std::string with_table = fmt::format("--tokens 1 --table '{}'", path);
  const Result stale = bench(kLayer + with_table);
  CHECK(stale.code == 0);
  CHECK(holds(stale.err, "kernels of the entries for"));
  const Result other_layer = bench("--shape 8,2,512,512 --device offline:h200 " + with_table);
  CHECK(other_layer.code == 2);
  CHECK(holds(other_layer.err, "another layer: E=8, K=2, H=512, I=256, bf16"));
  CHECK(other_layer.out == "");
  const Result other_gpu = bench("--shape 8,2,512,256 --device offline:h100 " + with_table);
  CHECK(other_gpu.code == 2);
  CHECK(holds(other_gpu.err, "is a table of NVIDIA H200"));
}

TEST_CASE("bench command: a table's point that the GPU cannot run is a failed row, not a crash") {
  const Bench bench;
  Table table = current_table();
  table.entries.at(8).plan.steps[1].point.set("BLOCK_SIZE_M", 0);
  const std::string path = write_table(bench.file("tables"), table);
  const Result result = bench(fmt::format("{} --tokens 1,8 --table '{}'", kLayer, path));
  CHECK(result.code == 1);
  CHECK(holds(result.out, "8 tokens: rejected: gemm2: BLOCK_SIZE_M=0 is not one of"));
  CHECK(holds(result.out, "exact   predicted"));
}

TEST_CASE("bench command: points by hand keep the reference's other values") {
  const Bench bench;
  const Result result = bench(kLayer +
                              "--tokens 4 --json --gemm1 BLOCK_SIZE_M=16,NUM_STAGES=4 "
                              "--gemm2 portable:BLOCK_SIZE_N=128");
  CAPTURE(result.err);
  CHECK(result.code == 0);
  const Json row = parse_json(result.out, "stdout").at("rows").at(0);
  CHECK(row.at("lookup") == "given");
  CHECK(holds(row.at("gemm1"), "portable:BLOCK_SIZE_M=16,BLOCK_SIZE_N=64"));
  CHECK(holds(row.at("gemm1"), "NUM_STAGES=4"));
  CHECK(holds(row.at("gemm2"), "BLOCK_SIZE_M=64,BLOCK_SIZE_N=128"));
  const Result again =
      bench(fmt::format("{} --tokens 4 --json --gemm1 {} --gemm2 {}", kLayer,
                        row.at("gemm1").get<std::string>(), row.at("gemm2").get<std::string>()));
  CHECK(parse_json(again.out, "stdout").at("rows").at(0) == row);
}

TEST_CASE("bench command: a point that cannot be compiled or fit is a failed row") {
  const Bench bench;
  const Result result = bench(kLayer +
                              "--tokens 4 --gemm1 BLOCK_SIZE_M=512,BLOCK_SIZE_N=512,NUM_STAGES=8 "
                              "--gemm2 BLOCK_SIZE_M=64");
  CAPTURE(result.out);
  CHECK(result.code == 1);
  CHECK(holds(result.out, "custom-8-2-512-256 bf16 4 tokens: "));
}

TEST_CASE("bench command: several models, named with their shard, in one record") {
  const Bench bench;
  const std::string out = bench.file("results/layers.json");
  const Result result = bench(fmt::format(
      "--model olmoe-1b-7b,qwen3-30b-a3b --tp 2 --device offline:h200 --tokens 1 --reference "
      "--out '{}' --commit abc1234",
      out));
  CAPTURE(result.err);
  CHECK(result.code == 0);
  const Json record = parse_json(read_file(out), out);
  CHECK(record.at("gpu") == "NVIDIA H200");
  CHECK(record.at("commit") == "abc1234");
  CHECK(holds(record.at("command"), "moe-tune bench "));
  CHECK(holds(record.at("command"), "--model olmoe-1b-7b,qwen3-30b-a3b"));
  REQUIRE(record.at("rows").size() == 2);
  CHECK(record.at("rows")[0].at("model") == "olmoe-1b-7b-tp2");
  CHECK(record.at("rows")[1].at("model") == "qwen3-30b-a3b-tp2");
  CHECK(record.at("rows")[1].at("lookup") == "reference");
  CHECK(record.at("rows")[1].at("source") == "predicted");
}

TEST_CASE("bench command: a record that cannot be merged stops the run before it starts") {
  const Bench bench;
  const std::string out = bench.file("layers.json");
  std::ofstream(out) << "{\"gpu\": \"NVIDIA H200\", \"rows\": [";
  const std::string arguments = fmt::format("{} --tokens 1 --reference --out '{}'", kLayer, out);
  const Result broken = bench(arguments);
  CHECK(broken.code == 2);
  CHECK(broken.out == "");
  CHECK(holds(broken.err, "layers.json:1:"));
  CHECK(read_file(out) == "{\"gpu\": \"NVIDIA H200\", \"rows\": [");
  const Result nowhere =
      bench(fmt::format("{} --tokens 1 --reference --out '{}/below/a.json'", kLayer, out));
  CHECK(nowhere.code == 2);
  CHECK(holds(nowhere.err, "give another --out"));
}

TEST_CASE("bench command: times are compared with others'") {
  const Bench bench;
  const std::string peers = bench.file("peers.json");
  std::ofstream(peers) << R"({"rows": [{"model": "custom-8-2-512-256", "dtype": "bf16",
                             "num_tokens": 1, "best_peer_us": 1000000}]})";
  const std::string arguments =
      fmt::format("{} --tokens 1 --reference --compare '{}'", kLayer, peers);
  const Result result = bench(arguments);
  CHECK(result.code == 0);
  CHECK(holds(result.out, "/best peer"));
  const Result skewed = bench(arguments + " --routing zipf:1.2");
  CHECK(skewed.code == 0);
  CHECK_FALSE(holds(skewed.out, "/best peer"));
  CHECK(holds(skewed.err, "uniform routing"));
}

TEST_CASE("bench command: bad usage exits with 2 and says what to give") {
  const Bench bench;
  const auto check = [&](const std::string& arguments, const std::string& part) {
    CAPTURE(arguments);
    const Result result = bench(arguments);
    CAPTURE(result.err);
    CHECK(result.code == 2);
    CHECK(result.out == "");
    CHECK(holds(result.err, "error: "));
    CHECK(holds(result.err, part));
  };
  check("--device offline:h200", "--model");
  check("--model olmoe-1b-7b,qwen3-30b --device offline:h200", "did you mean qwen3-30b-a3b?");
  check(kLayer + "--tokens 0", "--tokens");
  check(kLayer + "--gemm1 BLOCK_SIZE_M=16", "--gemm2");
  check(kLayer + "--gemm1 BLOCK_SIZE=16 --gemm2 FP8=0", "did you mean BLOCK_SIZE_M?");
  check(kLayer + "--gemm1 BLOCK_SIZE_M --gemm2 FP8=0", "BLOCK_SIZE_M needs an integer");
  check(kLayer + "--gemm1 BLOCK_SIZE_M=17 --gemm2 FP8=0", "BLOCK_SIZE_M=17 is not one of");
  check(kLayer + "--gemm1 BLOCK_SIZE_M=9999999999 --gemm2 FP8=0", "needs an integer");
  check(kLayer + "--gemm1 '' --gemm2 ''", "empty");
  check(kLayer + "--gemm1 portabel:FP8=0 --gemm2 FP8=0", "portable");
  check(kLayer + "--gemm1 FP8=0 --gemm2 FP8=0 --reference", "--reference");
  check(kLayer + "--table /absent/table.json", "/absent/table.json");
  check(kLayer + "--compare /absent/peers.json", "/absent/peers.json");
}

}  // namespace moetune
