#include <doctest/doctest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <vector>

#include "core/error.hpp"
#include "core/text.hpp"
#include "table/schema.hpp"
#include "table/table.hpp"
#include "tests/table_fixture.hpp"

namespace moetune {
namespace {

using Json = nlohmann::ordered_json;

std::string table_text(const std::function<void(Json&)>& mutate) {
  Json json = sample_table();
  mutate(json);
  return json.dump(2);
}

// The message of the Error(input) that reading `text` gives; empty when it is accepted.
std::string refusal(const std::string& text) {
  try {
    parse_table(text, "t.json");
  } catch (const Error& error) {
    CHECK(error.kind() == ErrorKind::input);
    const std::string message = error.what();
    CHECK(message.starts_with("t.json:"));
    CHECK(message.find('\n') == std::string::npos);
    return message;
  }
  return "";
}

// The sample as the program before wrote it.
std::string version_3_text(const char* kernels_hash) {
  return table_text([&](Json& json) {
    json["schema_version"] = 3;
    json["identity"].erase("variants");
    json["identity"].erase("small_kernels");
    json["identity"]["kernels_hash"] = kernels_hash;
  });
}

std::string refusal(const std::function<void(Json&)>& mutate) {
  return refusal(table_text(mutate));
}

bool holds(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("table: names follow the convention of MoE users, with what it lacks") {
  TableIdentity identity = sample_table().identity;
  identity.shape = {"qwen3-30b-a3b", 128, 8, 2048, 768};
  CHECK(table_file_name(identity) == "E=128,N=768,H=2048,topk=8,device_name=NVIDIA_H200.json");
  identity.dtype = Dtype::fp8_tensor;
  CHECK(table_file_name(identity) ==
        "E=128,N=768,H=2048,topk=8,device_name=NVIDIA_H200,dtype=fp8_w8a8.json");
  identity.dtype = Dtype::fp8_block;
  CHECK(table_file_name(identity) ==
        "E=128,N=768,H=2048,topk=8,device_name=NVIDIA_H200,dtype=fp8_w8a8,"
        "block_shape=[128,128].json");
  identity.gpu = "../../etc/x y";
  CHECK(table_file_name(identity).find('/') == std::string::npos);
}

TEST_CASE("table: what is written is read back the same") {
  const TemporaryFolder directory;
  Table table = sample_table();
  table.seed = std::numeric_limits<std::uint64_t>::max();
  table.entries.at(8).source = Source::predicted;
  table.entries.at(8).ties = {"another plan"};
  table.entries.at(8).timing.num_discarded = 3;
  table.entries.at(8).timing.clock_mhz = 1410;
  table.entries.at(8).timing.unsteady = true;
  table.entries.at(8).quantisation_err = 0.04;
  table.entries.at(8).energy_mj = 12.5;
  table.entries.at(8).workspace_bytes = 4096;
  table.objective = Objective::energy;
  table.routing = parse_routing("zipf:1.2");
  const std::string path = write_table(directory.path() + "/new/NVIDIA_H200", table);
  CHECK(std::filesystem::path(path).filename() == table_file_name(table.identity));
  const Table read = read_table(path);
  CHECK(Json(read) == Json(table));
  CHECK(read.entries.at(8).plan == table.entries.at(8).plan);
  CHECK(read.entries.at(8).source == Source::predicted);
  CHECK(read.seed == table.seed);
  CHECK(read.objective == Objective::energy);
  CHECK(read.entries.at(8).energy_mj == 12.5);
  CHECK(read.entries.at(8).workspace_bytes == 4096);
  CHECK(read.entries.at(8).quantisation_err == 0.04);
  CHECK(read.entries.at(1).workspace_bytes == 0);
}

TEST_CASE("table: the hashes of each variant and of the small kernels are read back") {
  const Table read = parse_table(table_text([](Json&) {}), "t.json");
  CHECK(read.identity.kernels.variants == sample_table().identity.kernels.variants);
  CHECK(read.identity.kernels.small_kernels == "4567cdef");
  const Json identity = Json(read).at("identity");
  CHECK(identity.at("variants").at("hopper") == "89abcdef");
  CHECK_FALSE(identity.contains("kernels_hash"));
}

TEST_CASE("table: version 3 is read, its one hash stands for each variant that it uses") {
  const Table read = parse_table(version_3_text("0a866b97"), "t.json");
  const std::map<std::string, std::string> variants{{"portable", "0a866b97"}};
  CHECK(read.identity.kernels.variants == variants);
  CHECK(read.identity.kernels.small_kernels == "0a866b97");
  CHECK(Json(read).at("entries") == Json(sample_table()).at("entries"));
  // Of the last sources that were hashed as one, each variant's hash is known.
  const Table last = parse_table(version_3_text("a4ae3c12914765b8dd005b209928fc4e"), "t.json");
  const std::vector<std::string> known{"decode", "hopper", "portable", "swap_ab"};
  std::vector<std::string> names;
  for (const auto& [name, hash] : last.identity.kernels.variants) names.push_back(name);
  CHECK(names == known);
  CHECK(last.identity.kernels.variants.at("portable") != "a4ae3c12914765b8dd005b209928fc4e");
}

TEST_CASE("table: version 3 without its hash is refused, and so is what no version has") {
  const Json good = Json::parse(version_3_text("0a866b97"));
  const auto without = [&](const std::function<void(Json&)>& change) {
    Json json = good;
    change(json);
    return refusal(json.dump());
  };
  CHECK(
      holds(without([](Json& json) { json["identity"].erase("kernels_hash"); }), "'kernels_hash'"));
  CHECK(holds(without([](Json& json) { json["identity"]["kernels_hash"] = 3; }), "'kernels_hash'"));
  CHECK(holds(without([](Json& json) { json["identity"] = 3; }), "'kernels_hash'"));
  CHECK(holds(without([](Json& json) { json.erase("identity"); }), "identity"));
  CHECK(holds(without([](Json& json) { json["entries"] = {1, 2}; }), "entries"));
  CHECK(holds(without([](Json& json) { json["entries"]["8"]["plan"] = 3; }), "entries.8.plan"));
  CHECK(holds(without([](Json& json) { json["entries"]["8"]["plan"][0]["variant"] = 3; }),
              "entries.8.plan.0.variant"));
  CHECK(holds(refusal([](Json& json) { json["identity"]["kernels_hash"] = "0a866b97"; }),
              "'kernels_hash'"));
}

TEST_CASE("table: a malformed object of variants is refused") {
  const auto with = [](const Json& variants) {
    return refusal([&](Json& json) { json["identity"]["variants"] = variants; });
  };
  CHECK(holds(with("0123"), "identity.variants is \"0123\""));
  CHECK(holds(with(Json::array({"portable"})), "identity.variants (array)"));
  CHECK(holds(with({{"portable", 7}}), "identity.variants.portable is 7"));
  CHECK(holds(with({{"portable", ""}}), "expected a hash of the variant's sources"));
  CHECK(holds(refusal([](Json& json) { json["identity"]["small_kernels"] = nullptr; }),
              "identity.small_kernels is null"));
}

TEST_CASE("table: token counts are written in numerical order") {
  Table table = sample_table();
  table.entries[1024] = table.entries.at(8);
  std::vector<std::string> keys;
  const Json json = table;
  for (const auto& [key, entry] : json.at("entries").items()) keys.push_back(key);
  CHECK(keys == std::vector<std::string>{"1", "8", "64", "1024"});
}

TEST_CASE("table: the shipped schema accepts a written table and is what the file holds") {
  CHECK(refusal([](Json&) {}) == "");
  CHECK(table_schema() == read_file(MOETUNE_SOURCE_DIR "/configs/table.schema.json"));
}

TEST_CASE("table: an entry says when its calls may differ in their last bits") {
  Table table = sample_table();
  CHECK_FALSE(Json(table).at("entries").at("8").contains("deterministic"));
  table.entries.at(8).plan.steps.back().point.set("FUSE_COMBINE", 1);
  CHECK(Json(table).at("entries").at("8").at("deterministic") == false);
}

TEST_CASE("table: any missing field is named") {
  const Json whole = sample_table();
  for (const auto& [key, value] : whole.items()) {
    const std::string field = key;
    CAPTURE(field);
    CHECK(holds(refusal([&](Json& json) { json.erase(field); }), "'" + field + "'"));
  }
  for (const auto& [key, value] : whole.at("identity").items()) {
    const std::string field = key;
    CAPTURE(field);
    const std::string message = refusal([&](Json& json) { json["identity"].erase(field); });
    CHECK(holds(message, "identity"));
    CHECK(holds(message, "'" + field + "'"));
  }
  for (const auto& [key, value] : whole.at("entries").at("8").items()) {
    const std::string field = key;
    CAPTURE(field);
    const std::string message = refusal([&](Json& json) { json["entries"]["8"].erase(field); });
    CHECK(holds(message, "entries.8"));
    CHECK(holds(message, "'" + field + "'"));
  }
}

TEST_CASE("table: wrong values are refused with field, value and what was expected") {
  const auto entry_refusal = [](const char* field, const Json& value) {
    return refusal([&](Json& json) { json["entries"]["8"][field] = value; });
  };
  const std::string source = entry_refusal("source", "guessed");
  CHECK(holds(source, "entries.8.source is \"guessed\""));
  CHECK(holds(source, "expected measured, recorded or predicted"));
  CHECK(holds(entry_refusal("median_us", "NaN"), "entries.8.median_us is \"NaN\""));
  CHECK(holds(entry_refusal("median_us", "inf"), "entries.8.median_us"));
  CHECK(holds(entry_refusal("median_us", nullptr), "entries.8.median_us is null"));
  CHECK(holds(entry_refusal("median_us", 0), "entries.8.median_us is 0"));
  CHECK(holds(entry_refusal("median_us", -1.5), "entries.8.median_us is -1.5"));
  CHECK(holds(entry_refusal("rel_err", -0.1), "entries.8.rel_err"));
  CHECK(holds(entry_refusal("registers", 12.5), "entries.8.registers"));
  CHECK(holds(entry_refusal("registers", -1), "entries.8.registers"));
  CHECK(holds(entry_refusal("smem_bytes", 18446744073709551615U), "entries.8.smem_bytes"));
  CHECK(holds(entry_refusal("ties", "yes"), "entries.8.ties"));
  CHECK(holds(entry_refusal("plan", Json::array()), "entries.8.plan"));
  CHECK(holds(entry_refusal("plan", 3), "entries.8.plan is 3"));
  CHECK(holds(entry_refusal("speed_up", 1), "'speed_up'"));
  CHECK(holds(refusal([](Json& json) {
                json["entries"]["8"]["plan"][0]["point"]["BLOCK_SIZE_M"] = 4294967360;
              }),
              "entries.8.plan.0.point.BLOCK_SIZE_M is 4294967360"));
  CHECK(
      holds(refusal([](Json& json) { json["schema_version"] = 1; }),
            "schema_version is 1: another version of moe-tune wrote this table, and this one reads "
            "3 and 4; tune again"));
  CHECK(
      holds(refusal([](Json& json) { json["schema_version"] = "4"; }), "schema_version is \"4\""));
  CHECK(holds(refusal([](Json& json) { json["seed"] = -1; }), "seed is -1"));
  CHECK(holds(refusal([](Json& json) { json["routing"] = "hot:0"; }), "hot:0"));
  CHECK(holds(refusal([](Json& json) { json["identity"]["dtype"] = "int4"; }), "identity.dtype"));
  CHECK(holds(refusal([](Json& json) { json["identity"]["top_k"] = 9; }), "top_k 9"));
  CHECK(holds(refusal([](Json& json) { json["identity"]["hidden_size"] = 9223372036854775807; }),
              "identity.hidden_size"));
  CHECK(holds(refusal([](Json& json) { json["created"] = "yesterday"; }), "created"));
}

TEST_CASE("table: token counts that are no counts are refused") {
  for (const char* key : {"0", "-8", "8x", "", " 8", "08", "1e3", "1.5", "99999999999999999999"}) {
    CAPTURE(key);
    const std::string message =
        refusal([&](Json& json) { json["entries"][key] = json["entries"]["8"]; });
    CHECK(holds(message, "entries"));
  }
  CHECK(refusal([](Json& json) { json["entries"]["99999999"] = json["entries"]["8"]; }) == "");
}

TEST_CASE("table: malformed and truncated JSON is refused with its line") {
  const std::string text = table_text([](Json&) {});
  CHECK(holds(refusal(text.substr(0, text.size() / 2)), "t.json:"));
  std::string broken = text;
  broken.replace(broken.find("\"seed\": 7"), 9, "\"seed\": 7x");
  const auto line =
      1 + std::count(broken.begin(), broken.begin() + static_cast<long>(broken.find("7x")), '\n');
  CHECK(holds(refusal(broken), "t.json:" + std::to_string(line) + ":"));
  for (const char* hostile : {"", "null", "[]", "{}", "3", "\"x\"", "{\"1\": NaN}", "\xff\xfe"}) {
    CAPTURE(hostile);
    CHECK(refusal(std::string(hostile)) != "");
  }
  CHECK(refusal(std::string(1 << 20, '[')) != "");
}

TEST_CASE("table: a key that occurs twice is refused, not dropped") {
  std::string text = table_text([](Json&) {});
  text.insert(text.find("\"8\": {"), "\"64\": 1, ");
  CHECK(holds(refusal(text), "\"64\" occurs twice"));
}

TEST_CASE("table: numbers and objects beyond all measure are refused") {
  std::string text = table_text([](Json&) {});
  text.replace(text.find("\"seed\": 7"), 9, "\"seed\": 1e999");
  CHECK(refusal(text) != "");
  CHECK(holds(refusal([](Json& json) {
                for (int i = 0; i < 5000; ++i) json["entries"][std::to_string(100 + i)] = 1;
              }),
              "more than 4096 members"));
  const TemporaryFolder directory;
  std::ofstream(directory.file("huge.json")) << "{";
  std::filesystem::resize_file(directory.file("huge.json"), std::uintmax_t{1} << 40);
  CHECK_THROWS_WITH_AS(read_table(directory.file("huge.json")),
                       doctest::Contains("too many for a table"), Error);
}

TEST_CASE("table: what is no file is refused") {
  const TemporaryFolder directory;
  CHECK_THROWS_AS(read_table(directory.file("absent.json")), Error);
  CHECK_THROWS_WITH_AS(read_table(directory.path()), doctest::Contains("not a regular file"),
                       Error);
  CHECK_THROWS_WITH_AS(read_table("/dev/zero"), doctest::Contains("not a regular file"), Error);
}

TEST_CASE("table: a vLLM table is recognised and the reason given") {
  for (const auto& file :
       std::filesystem::directory_iterator(MOETUNE_SOURCE_DIR "/tests/data/tables")) {
    if (file.path().extension() != ".json") continue;
    CAPTURE(file.path().string());
    CHECK_THROWS_WITH_AS(read_table(file.path().string()),
                         doctest::Contains("this is a vLLM/SGLang fused_moe table (18 token"),
                         Error);
  }
  CHECK(holds(refusal(R"({"triton_version": "3.4", "64": {"BLOCK_SIZE_M": 16, "num_warps": 4}})"),
              "vLLM/SGLang"));
}

TEST_CASE("look_up: exact, else nearest by ratio, the larger of two as near, else fallback") {
  const Table table = sample_table();  // 1, 8, 64
  CHECK(look_up(table, 8).step == LookupStep::exact);
  CHECK(look_up(table, 8).entry == &table.entries.at(8));
  CHECK(look_up(table, 9).step == LookupStep::nearest);
  CHECK(look_up(table, 9).num_tokens == 8);
  CHECK(look_up(table, 22).num_tokens == 8);
  CHECK(look_up(table, 23).num_tokens == 64);
  CHECK(nearest_keys({1, 2, 4, 8}, 3) == std::vector<std::int64_t>{4, 2, 8, 1});
  CHECK(nearest_keys({16, 64}, 32) == std::vector<std::int64_t>{64, 16});
  CHECK(look_up(table, 100000).num_tokens == 64);
  CHECK(look_up(table, 0).num_tokens == 1);
  const Lookup none = look_up(Table{}, 8);
  CHECK(none.step == LookupStep::fallback);
  CHECK(none.entry == nullptr);
}

}  // namespace moetune
