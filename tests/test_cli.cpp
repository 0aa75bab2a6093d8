#include <doctest/doctest.h>
#include <sys/wait.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "core/text.hpp"
#include "tests/temporary_folder.hpp"

using namespace moetune;
namespace fs = std::filesystem;

namespace {

struct Ran {
  int code = -1;
  std::string out;
  std::string err;
};

// Runs the program through the shell; `arguments` may hold redirections of its own.
Ran run(const std::string& arguments) {
  const TemporaryFolder temporary;
  const std::string& folder = temporary.path();
  const std::string command =
      "'" MOETUNE_PROGRAM "' >" + folder + "/out 2>" + folder + "/err " + arguments;
  const int status = std::system(command.c_str());
  Ran ran;
  ran.code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  ran.out = read_file(folder + "/out");
  ran.err = read_file(folder + "/err");
  return ran;
}

bool holds(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// One `error: ...` line that holds `part`, nothing on stdout, and the exit code.
void check_error(const std::string& arguments, int code, const std::string& part) {
  CAPTURE(arguments);
  const Ran ran = run(arguments);
  CAPTURE(ran.err);
  CHECK(ran.code == code);
  CHECK(ran.out.empty());
  CHECK(ran.err.starts_with("error: "));
  CHECK(ran.err.find('\n') == ran.err.size() - 1);
  CHECK(holds(ran.err, part));
}

const std::string kLayer = "--shape 8,2,256,256 --device offline:h200 ";

}  // namespace

TEST_CASE("cli: misspelt subcommands and options are answered with the nearest") {
  check_error("", 2, "no subcommand given");
  check_error("serach", 2, "did you mean search?");
  check_error("serach --model x", 2, "unknown subcommand 'serach', did you mean search?");
  check_error("space --modle x", 2, "unknown option '--modle', did you mean --model?");
  check_error("space --tokns=4", 2, "did you mean --tokens?");
  check_error("space -tokens 4", 2, "did you mean --tokens?");
  check_error("space --zzzzzz", 2, "unknown option '--zzzzzz'; see `moe-tune space --help`");
  check_error("models --verbos", 2, "did you mean --verbose?");
  check_error("models extra", 2, "models takes no argument 'extra'");
}

TEST_CASE("cli: a layer that makes no sense is a usage error") {
  check_error("space", 2, "--model NAME");
  check_error("space --model qwen3-30b", 2, "did you mean qwen3-30b-a3b?");
  check_error("space --model /absent/config.json", 2, "/absent/config.json: No such file");
  check_error("space --model mixtral-8x7b --shape 8,2,64,64", 2, "leave one out");
  check_error("space --shape 8,2,64", 2, "four sizes");
  check_error("space --shape 8,2,64,x", 2, "--shape: 'x'");
  check_error("space --shape 8,9,64,64", 2, "top_k 9");
  check_error("space --shape 8,2,-64,64", 2, "--shape: '-64'");
  check_error("space --shape 8,2,99999999999999999999,64", 2, "--shape: '9");
  check_error("space --shape 8,2,68,64", 2, "multiple of 8");
  check_error("space --shape 8,2,4294967296,64", 2, "at most 2147483647");
  check_error("space --model gpt-oss-20b --dtype fp8_block", 2, "fp8_tensor");
  check_error("space --model mixtral-8x7b --dtype fp8blok", 2, "did you mean fp8_block?");
  check_error("space --model mixtral-8x7b --tp 3", 2, "--tp 3 does not divide");
  check_error("space --model mixtral-8x7b --ep 3", 2, "--ep 3 does not divide");
  check_error("space --model mixtral-8x7b --routing hot:1", 2, "hot:1");
  check_error("space --model mixtral-8x7b --seed -1", 2, "--seed: '-1'");
  check_error("space --model mixtral-8x7b --tokens 0", 2, "--tokens");
  check_error("space --model mixtral-8x7b --tokens x", 2, "--tokens");
}

TEST_CASE("cli: a device that is not there has its own exit code") {
  check_error("space --shape 8,2,64,64 --device 99", 3, "--device 99");
  check_error("space --shape 8,2,64,64 --device offline:h20", 2, "did you mean h200?");
  check_error("space --shape 8,2,64,64 --device quantum", 2, "unknown GPU 'quantum'");
  check_error("space --shape 8,2,256,256 --dtype fp8_block --device offline:a100", 3, "bf16");
}

TEST_CASE("cli: an error stays one line whatever the arguments hold") {
  check_error("\"$(printf 'a\\nb\\033[31m')\"", 2, "unknown subcommand");
}

TEST_CASE("cli: results that cannot be written are an error") {
  if (!fs::exists("/dev/full")) return;
  const Ran ran = run("models >/dev/full");
  CHECK(ran.code == 2);
  CHECK(holds(ran.err, "error: "));
  CHECK(holds(ran.err, "No space left on device"));
}

TEST_CASE("cli: help and version go to stdout and succeed") {
  const Ran help = run("--help");
  CHECK(help.code == 0);
  CHECK(help.err.empty());
  CHECK(holds(help.out, "Examples:"));
  CHECK(holds(help.out, "Exit codes:"));
  CHECK_FALSE(holds(help.out, "worker"));
  CHECK(run("--version").out.starts_with("moe-tune "));
  for (const std::string command :
       {"search", "validate", "bench", "compile", "devices", "models", "space"}) {
    CAPTURE(command);
    CHECK(holds(help.out, "\n  " + command));
    const Ran ran = run(command + " --help");
    CHECK(ran.code == 0);
    CHECK(holds(ran.out, "Usage: moe-tune " + command));
    CHECK_FALSE(holds(ran.out, "the work fell short"));  // the program's footer, when it has none
  }
}

TEST_CASE("cli: help shows an example of the very subcommand") {
  for (const std::string command : {"search", "bench", "compile", "devices", "models", "space"}) {
    CAPTURE(command);
    const std::string help = run(command + " --help").out;
    const std::size_t example = help.find("Example");
    REQUIRE(example != std::string::npos);
    CHECK(help.find("moe-tune " + command, example) != std::string::npos);
  }
}

TEST_CASE("cli: models and devices list what is shipped, as text and as JSON") {
  const Ran models = run("models");
  CHECK(models.code == 0);
  CHECK(holds(models.out, "deepseek-v3"));
  CHECK(parse_json(run("models --json").out, "stdout").size() >= 10);
  const auto devices = parse_json(run("devices --json").out, "stdout");
  bool found = false;
  for (const auto& device : devices)
    found = found || (device.at("device") == "offline:h200" && device.at("arch") == "sm_90a");
  CHECK(found);
  CHECK(holds(run("devices").out, "NVIDIA H200"));
}

TEST_CASE("cli: space counts every point once, legal or under the rule that rejects it") {
  const auto shown = parse_json(run("space " + kLayer + "--json").out, "stdout");
  REQUIRE(shown.size() >= 2);
  for (const auto& space : shown) {
    std::uint64_t counted = space.at("num_legal").get<std::uint64_t>();
    // But where GEMMs only exist together.
    CHECK((counted > 0 || space.at("rejected").at("joined").at("count") == space.at("num_points")));
    for (const auto& rule : space.at("rejected")) counted += rule.at("count").get<std::uint64_t>();
    CHECK(counted == space.at("num_points").get<std::uint64_t>());
  }
  const Ran text = run("space " + kLayer + "--stage gemm2 --quiet");
  CHECK(text.code == 0);
  CHECK(text.err.empty());
  CHECK(holds(text.out, "BLOCK_SIZE_M"));
  CHECK_FALSE(holds(text.out, "gemm1 of"));
}

TEST_CASE("cli: replay runs strategies on a recorded journal and writes what it is asked for") {
  const std::string journal =
      "'" MOETUNE_SOURCE_DIR
      "/results/NVIDIA_H200/E=8,N=14336,H=4096,topk=2,device_name=NVIDIA_H200.jsonl' ";
  const TemporaryFolder temporary;
  const std::string& folder = temporary.path();
  const Ran ran = run("replay " + journal + "--seeds 2 --json --out " + folder +
                      "/replay.json --svg " + folder + "/replay.svg --t4 " + folder + "/t4.json");
  CAPTURE(ran.err);
  REQUIRE(ran.code == 0);
  const auto json = nlohmann::json::parse(ran.out);
  CHECK(json.at("journals")[0].at("identity").at("model") == "mixtral-8x7b");
  CHECK(json.at("journals")[0].at("strategies").size() == 5);
  CHECK(json.at("journals")[0].at("num_seeds") == 2);
  CHECK(read_file(folder + "/replay.json") == ran.out);
  CHECK(read_file(folder + "/replay.svg").starts_with("<svg"));
  CHECK_FALSE(nlohmann::json::parse(read_file(folder + "/t4.json")).at("results").empty());

  const Ran text = run("replay " + journal + "--seeds 1 --strategy guided,grid");
  CHECK(text.code == 0);
  CHECK(holds(text.out, "guided"));
  CHECK(holds(text.out, "GPU seconds:"));
  check_error("replay " + journal + "--strategy giuded", 2, "did you mean 'guided'");
  check_error("replay " + journal + journal + "--t4 x.json", 2, "--t4");
  check_error("replay /nowhere.jsonl", 2, "/nowhere.jsonl");
}
