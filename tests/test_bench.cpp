// Times of whole layers: floors, reports, the record that keeps them, and the command.
#include <doctest/doctest.h>
#include <fmt/format.h>
#include <sys/wait.h>

#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include "core/error.hpp"
#include "core/text.hpp"
#include "jit/compiler.hpp"
#include "report/bench_record.hpp"
#include "report/bench_report.hpp"
#include "tests/table_fixture.hpp"

namespace moetune {
namespace {

using Json = nlohmann::ordered_json;

bool holds(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

BenchRun sample_run() {
  BenchRun run;
  run.gpu = known_gpu("h200");
  run.gpu.offline = false;
  run.gpu.driver = "CUDA 13.0";
  run.commit = "abc1234";
  run.command = "moe-tune bench --model mixtral-8x7b";
  run.date = "2026-01-31T09:30:00Z";
  return run;
}

BenchRow sample_row(std::int64_t num_tokens, double median_us, Source source = Source::measured) {
  BenchRow row;
  row.model = "mixtral-8x7b";
  row.problem = {{"mixtral-8x7b", 8, 2, 4096, 14336}, Dtype::bf16, num_tokens, {}, 0};
  row.lookup = "exact";
  row.trial.num_tokens = num_tokens;
  row.trial.plan = reference_plan(known_gpu("h200"), row.problem);
  row.trial.timing = {median_us, median_us * 0.9, median_us * 1.1, 40, 0};
  row.trial.rel_err = 0.0042;
  row.trial.source = source;
  return row;
}

BenchRow failed_row(std::int64_t num_tokens) {
  BenchRow row = sample_row(num_tokens, 0);
  row.trial.timing = {};
  row.trial.status = TrialStatus::wrong_result;
  row.trial.reason = "rel_err 0.3 is above 0.006";
  return row;
}

void write(const std::string& path, const std::string& text) {
  std::ofstream(path) << text;
}

// The kind and message of the Error that `act` throws.
template <class Act>
std::pair<ErrorKind, std::string> error_of(Act act) {
  try {
    act();
  } catch (const Error& error) {
    return {error.kind(), error.what()};
  }
  return {ErrorKind::failed, "nothing was thrown"};
}

}  // namespace

TEST_CASE("bench: the floor is bytes over bandwidth for few tokens, flops over rate for many") {
  const Gpu gpu = known_gpu("h200");
  const Problem few = sample_row(1, 1).problem;
  CHECK(floor_us(gpu, few) == doctest::Approx(layer_bytes(few) / (gpu.read_gbps * 1e9) * 1e6));
  const Problem many = sample_row(8192, 1).problem;
  CHECK(floor_us(gpu, many) == doctest::Approx(layer_flops(many) / (gpu.bf16_tflops * 1e12) * 1e6));
  Problem fp8 = many;
  fp8.dtype = Dtype::fp8_block;
  CHECK(floor_us(gpu, fp8) == doctest::Approx(layer_flops(fp8) / (gpu.fp8_tflops * 1e12) * 1e6));
  CHECK(floor_us(Gpu{}, few) == 0);
}

TEST_CASE("bench: text and JSON derive rates from the median") {
  const BenchRun run = sample_run();
  const std::vector<BenchRow> rows = {sample_row(1, 200)};
  const Json row = bench_json(run, rows, {}).at("rows").at(0);
  CHECK(row.at("tflops").get<double>() == doctest::Approx(704643072 / 200e-6 / 1e12));
  CHECK(row.at("gbps").get<double>() ==
        doctest::Approx(layer_bytes(rows[0].problem) / 200e-6 / 1e9));
  CHECK(row.at("tokens_per_s").get<double>() == doctest::Approx(5000));
  CHECK(row.at("fraction_of_floor").get<double>() ==
        doctest::Approx(floor_us(run.gpu, rows[0].problem) / 200));
  CHECK(row.at("p10_us").get<double>() == doctest::Approx(180));
  CHECK(row.at("lookup") == "exact");
  CHECK(row.at("gemm2").get<std::string>().starts_with("portable:BLOCK_SIZE_M=64,"));
  CHECK_FALSE(row.contains("time_over_best_peer"));
  const std::string text = bench_text(run, rows, {});
  CHECK(holds(text, "simple roofline"));
  CHECK(holds(text, "200.00  180.00  220.00"));
  CHECK(holds(text, "0.00420"));
  CHECK_FALSE(holds(text, "best peer"));
}

TEST_CASE("bench: a time that is no measurement says so and claims no error") {
  BenchRun run = sample_run();
  run.gpu.offline = true;
  const std::vector<BenchRow> rows = {sample_row(1, 200, Source::predicted)};
  const std::string text = bench_text(run, rows, {});
  CHECK(holds(text, "offline"));
  CHECK(holds(text, "predicted: from a model"));
  CHECK_FALSE(holds(text, "0.00420"));
  const Json row = bench_json(run, rows, {}).at("rows").at(0);
  CHECK(row.at("source") == "predicted");
  CHECK(row.at("rel_err").is_null());
}

TEST_CASE("bench: a layer that failed has a reason and no numbers") {
  const std::vector<BenchRow> rows = {failed_row(64)};
  const std::string text = bench_text(sample_run(), rows, {});
  CHECK(holds(text, "mixtral-8x7b bf16 64 tokens: wrong_result: rel_err 0.3 is above 0.006"));
  const Json row = bench_json(sample_run(), rows, {}).at("rows").at(0);
  CHECK(row.at("status") == "wrong_result");
  CHECK(row.at("layer_us").is_null());
  CHECK(row.at("source").is_null());
  CHECK(row.at("fraction_of_floor").is_null());
}

TEST_CASE("bench: comparison divides by others' times and leaves absent ones blank") {
  const TemporaryFolder directory;
  const std::string path = directory.file("peers.json");
  write(path, R"({"gpu": "NVIDIA H200", "rows": [
    {"model": "mixtral-8x7b", "dtype": "bf16", "num_tokens": 1, "vllm_triton_tuned_us": 100,
     "best_peer_us": null, "floor_us": 160, "other": "ignored"}]})");
  const BenchRun run = sample_run();
  const Peers peers = read_peers(path, run.gpu);
  const std::vector<BenchRow> rows = {sample_row(1, 200), sample_row(2, 200)};
  const Json json = bench_json(run, rows, peers);
  CHECK(json.at("rows")[0].at("time_over_vllm_tuned").get<double>() == doctest::Approx(2.0));
  CHECK(json.at("rows")[0].at("time_over_best_peer").is_null());
  CHECK(json.at("rows")[0].at("time_over_peers_floor").get<double>() == doctest::Approx(1.25));
  CHECK(json.at("rows")[1].at("time_over_vllm_tuned").is_null());
  const std::string text = bench_text(run, rows, peers);
  CHECK(holds(text, "/vLLM tuned  /best peer  /floor"));
  CHECK(holds(text, "2.00"));
  CHECK(holds(text, "1.25"));
}

TEST_CASE("bench: a comparison file that makes no sense names the file and the row") {
  const TemporaryFolder directory;
  const std::string path = directory.file("peers.json");
  const auto error = [&](const std::string& text) {
    write(path, text);
    const auto [kind, message] = error_of([&] { read_peers(path, known_gpu("h200")); });
    CHECK(kind == ErrorKind::input);
    CHECK(holds(message, path));
    return message;
  };
  CHECK(holds(error("[]"), "'rows'"));
  CHECK(holds(error(R"({"rows": [)"), ":1:"));
  CHECK(holds(error(R"({"rows": [7]})"), "row 1: 'model'"));
  CHECK(holds(error(R"({"rows": [{"model": "m", "dtype": "bf16"}]})"), "'num_tokens'"));
  CHECK(holds(error(R"({"rows": [{"model": "m", "dtype": "bf16", "num_tokens": 1,
                                  "best_peer_us": -1}]})"),
              "'best_peer_us'"));
  CHECK(holds(error(R"({"gpu": "NVIDIA B200", "rows": []})"), "NVIDIA B200"));
}

TEST_CASE("bench record: rows are added, replaced by newer ones, and keep what else is there") {
  const TemporaryFolder directory;
  const std::string path = directory.file("layers.json");
  BenchRun run = sample_run();
  CHECK(update_record(path, run, sample_row(1, 200)));
  CHECK(update_record(path, run, sample_row(8, 600)));
  Json record = parse_json(read_file(path), path);
  record["note"] = "kept";
  write(path, record.dump());
  run.commit = "def5678";
  CHECK(update_record(path, run, sample_row(1, 190)));
  record = parse_json(read_file(path), path);
  CHECK(record.at("gpu") == "NVIDIA H200");
  CHECK(record.at("driver") == "CUDA 13.0");
  CHECK(record.at("commit") == "def5678");
  CHECK(record.at("command") == run.command);
  CHECK(record.at("date") == run.date);
  CHECK(record.at("note") == "kept");
  REQUIRE(record.at("rows").size() == 2);
  const Json& row = record.at("rows")[0];
  CHECK(row.at("model") == "mixtral-8x7b");
  CHECK(row.at("dtype") == "bf16");
  CHECK(row.at("num_tokens") == 1);
  CHECK(row.at("layer_us") == 190.0);
  CHECK(row.at("p10_us") == 171.0);
  CHECK(row.at("p90_us") == 209.0);
  CHECK(row.at("rel_err") == 0.0042);
  CHECK(row.at("source") == "measured");
  CHECK(row.at("commit") == "def5678");
  CHECK(record.at("rows")[1].at("layer_us") == 600.0);
  CHECK(record.at("rows")[1].at("commit") == "abc1234");
}

TEST_CASE("bench record: failures and predictions never replace a measured time") {
  const TemporaryFolder directory;
  const std::string path = directory.file("layers.json");
  const BenchRun run = sample_run();
  CHECK_FALSE(update_record(path, run, failed_row(1)));
  CHECK_FALSE(std::filesystem::exists(path));
  CHECK(update_record(path, run, sample_row(1, 250, Source::predicted)));
  CHECK(update_record(path, run, sample_row(1, 200)));
  const std::string before = read_file(path);
  CHECK_FALSE(update_record(path, run, sample_row(1, 100, Source::predicted)));
  CHECK_FALSE(update_record(path, run, sample_row(1, 100, Source::recorded)));
  CHECK_FALSE(update_record(path, run, failed_row(1)));
  CHECK(read_file(path) == before);
}

TEST_CASE("bench record: other routings have rows of their own") {
  BenchRun run = sample_run();
  Json record = {{"gpu", run.gpu.name},
                 {"rows", Json::array({{{"model", "mixtral-8x7b"},
                                        {"dtype", "bf16"},
                                        {"num_tokens", 1},
                                        {"source", "measured"}}})}};
  CHECK(merge_row(record, run, sample_row(1, 200)));
  CHECK(record.at("rows").size() == 1);
  run.routing = parse_routing("zipf:1.2");
  CHECK(merge_row(record, run, sample_row(1, 210)));
  CHECK(record.at("rows").size() == 2);
}

TEST_CASE("bench record: a file that is none, or of another GPU, is left as it is") {
  const TemporaryFolder directory;
  const std::string path = directory.file("layers.json");
  for (const std::string text :
       {"", "{\"gpu\": \"NVIDIA H200\", \"rows\": [", "[]", "{\"gpu\": \"NVIDIA H200\"}",
        "{\"rows\": []}", "{\"gpu\": 7, \"rows\": []}",
        "{\"gpu\": \"NVIDIA H200\", \"rows\": [{}]}", "{\"gpu\": \"NVIDIA H200\", \"rows\": [1]}",
        "{\"gpu\": \"NVIDIA H200\", \"rows\": [{\"model\": \"m\", \"dtype\": \"bf16\", "
        "\"num_tokens\": 1, \"source\": \"measured\", \"routing\": 4}]}",
        "{\"gpu\": \"NVIDIA B200\", \"rows\": []}"}) {
    CAPTURE(text);
    write(path, text);
    const auto [kind, message] =
        error_of([&] { update_record(path, sample_run(), sample_row(1, 200)); });
    CHECK(kind == ErrorKind::input);
    CHECK(holds(message, path));
    CHECK(read_file(path) == text);
  }
}

}  // namespace moetune
