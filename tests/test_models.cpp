#include <doctest/doctest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>

#include "core/error.hpp"
#include "core/models.hpp"
#include "core/text.hpp"
#include "tests/temporary_folder.hpp"

using namespace moetune;
namespace fs = std::filesystem;

namespace {

struct Folder : TemporaryFolder {
  std::string write(const std::string& name, const std::string& text) const {
    const fs::path to = file(name);
    fs::create_directories(to.parent_path());
    std::ofstream(to) << text;
    return to.string();
  }
};

std::string message_of(const auto& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

bool holds(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

LayerShape sizes(std::string model, std::int64_t e, std::int64_t k, std::int64_t h,
                 std::int64_t i) {
  return {std::move(model), e, k, h, i};
}

}  // namespace

TEST_CASE("models: every shipped file is embedded, under its own name, and fits bf16") {
  std::size_t num_files = 0;
  for (const auto& entry : fs::directory_iterator(MOETUNE_SOURCE_DIR "/configs/models")) {
    ++num_files;
    const std::string name = entry.path().stem().string();
    CAPTURE(name);
    const LayerShape embedded = load_model(name);
    CHECK(embedded.model == name);
    CHECK(embedded == load_model(entry.path().string()));
    Problem problem;
    problem.shape = embedded;
    problem.num_tokens = 4096;
    CHECK_NOTHROW(check(problem));
  }
  CHECK(num_files >= 10);
  CHECK(shipped_models().size() == num_files);
  CHECK(std::is_sorted(shipped_models().begin(), shipped_models().end(),
                       [](const auto& a, const auto& b) { return a.model < b.model; }));
}

TEST_CASE("models: shapes are the published ones") {
  CHECK(load_model("deepseek-v3") == sizes("deepseek-v3", 256, 8, 7168, 2048));
  CHECK(load_model("qwen3-30b-a3b") == sizes("qwen3-30b-a3b", 128, 8, 2048, 768));
  CHECK(load_model("gpt-oss-120b") == sizes("gpt-oss-120b", 128, 4, 2880, 2880));
}

TEST_CASE("models: an unknown name is answered with the nearest one") {
  CHECK(holds(message_of([] { load_model("qwen3-30b"); }), "did you mean qwen3-30b-a3b?"));
  CHECK(holds(message_of([] { load_model("mixtrel-8x7b"); }), "did you mean mixtral-8x7b?"));
  const std::string far = message_of([] { load_model("resnet"); });
  CHECK(holds(far, "unknown model 'resnet'"));
  CHECK_FALSE(holds(far, "did you mean"));
}

TEST_CASE("models: the families' config.json fields are read") {
  const Folder folder;
  const auto load = [&](const std::string& text) {
    return load_model(folder.write("Some-Model/config.json", text));
  };
  SUBCASE("mixtral, gpt_oss") {
    CHECK(load(R"({"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2,
                   "hidden_size": 4096, "intermediate_size": 14336})") ==
          sizes("Some-Model", 8, 2, 4096, 14336));
  }
  SUBCASE("qwen3_moe: the experts' size, not the dense layers'") {
    CHECK(load(R"({"model_type": "qwen3_moe", "num_experts": 128, "num_experts_per_tok": 8,
                   "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768,
                   "top_k": 50})") == sizes("Some-Model", 128, 8, 2048, 768));
  }
  SUBCASE("deepseek_v3, glm4_moe") {
    CHECK(load(R"({"model_type": "deepseek_v3", "n_routed_experts": 256, "num_experts_per_tok": 8,
                   "hidden_size": 7168, "intermediate_size": 18432,
                   "moe_intermediate_size": 2048})") == sizes("Some-Model", 256, 8, 7168, 2048));
  }
  SUBCASE("llama4: nested under text_config") {
    CHECK(load(R"({"model_type": "llama4", "text_config": {"num_local_experts": 16,
                   "num_experts_per_tok": 1, "hidden_size": 5120, "intermediate_size": 8192,
                   "intermediate_size_mlp": 16384}})") == sizes("Some-Model", 16, 1, 5120, 8192));
  }
  SUBCASE("a folder stands for its config.json") {
    const LayerShape shape = load(R"({"model_type": "olmoe", "num_experts": 64, "hidden_size": 2048,
                                      "num_experts_per_tok": 8, "intermediate_size": 1024})");
    CHECK(load_model(folder.path() + "/Some-Model") == shape);
  }
}

TEST_CASE("models: bad files are refused with the file and the cause") {
  const Folder folder;
  const auto message = [&](const std::string& text) {
    const std::string path = folder.write("model.json", text);
    const std::string what = message_of([&] { load_model(path); });
    CHECK(what.starts_with(path));
    return what;
  };
  CHECK(holds(message("{\n  \"name\": \"x\",\n  \"num_experts\": "), "model.json:3:"));
  CHECK(
      holds(message(R"({"model_type": "llama", "hidden_size": 4096})"), "'num_local_experts' or"));
  CHECK(holds(message(R"({"model_type": "d", "n_routed_experts": null})"), "is missing"));
  CHECK(holds(message(R"({"name": "x", "num_experts": 8})"), "'top_k' is missing"));
  CHECK(holds(message(R"({"num_experts": 8})"), "'name' is missing"));
  CHECK(holds(message(R"({"name": "x", "num_experts": "8"})"), "must be an integer"));
  CHECK(holds(message(R"({"name": "x", "num_experts": 0})"), "not 0"));
  CHECK(holds(message(R"({"name": "x", "num_experts": -8})"), "not -8"));
  CHECK(holds(message(R"({"name": "x", "num_experts": 99999999999999999999})"),
              "must be an integer"));
  CHECK(holds(message(R"({"name": "x", "num_experts": 2147483648})"), "2147483648"));
  CHECK(holds(message(R"({"name": "x", "num_experts": 8, "top_k": 9, "hidden_size": 8,
                          "intermediate_size": 8})"),
              "top_k 9 is more than the 8 experts"));
  CHECK(holds(message("[]"), "must be a JSON object"));
  CHECK(holds(message(""), "model.json:1:1"));
  const std::string absent = folder.path() + "/absent.json";
  CHECK(holds(message_of([&] { load_model(absent); }), "No such file"));
}

TEST_CASE("models: --tp divides the intermediate size, --ep the experts") {
  const LayerShape whole = sizes("m", 128, 8, 4096, 1536);
  CHECK(shard(whole, 1, 1) == whole);
  CHECK(shard(whole, 8, 4) == sizes("m", 32, 8, 4096, 192));
  CHECK(holds(message_of([&] { shard(whole, 7, 1); }), "--tp 7 does not divide"));
  CHECK(holds(message_of([&] { shard(whole, 1, 3); }), "--ep 3 does not divide"));
  CHECK(holds(message_of([&] { shard(whole, 1, 32); }), "leaves 4 experts"));
  CHECK(holds(message_of([&] { shard(whole, 0, 1); }), "at least 1"));
  CHECK(holds(message_of([&] { shard(whole, 1, -1); }), "at least 1"));
}
