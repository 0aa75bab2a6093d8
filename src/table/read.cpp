#include <fmt/format.h>

#include <charconv>
#include <filesystem>
#include <set>
#include <system_error>
#include <vector>

#include "core/error.hpp"
#include "core/text.hpp"
#include "table/older.hpp"
#include "table/schema.hpp"
#include "table/table.hpp"

namespace moetune {
namespace {

using Json = nlohmann::json;
using Ordered = nlohmann::ordered_json;

// A table of 18 token counts is 20 KB. The limits bound the work that a hostile file can cause:
// ordered_json looks members up one by one.
constexpr std::uintmax_t kMaxFileBytes = std::uintmax_t{4} << 20;
constexpr std::size_t kMaxMembers = 4096;

[[noreturn]] void refuse(const std::string& path, const std::string& why) {
  throw Error(ErrorKind::input, path + ": " + why);
}

// Discarded when malformed: parse_json then says where. The library silently keeps one of two
// members of the same name, which would hide half of a badly merged file.
Json parse_unique(std::string_view text, const std::string& path) {
  std::vector<std::set<std::string>> open_objects;
  const auto watch = [&](int, Json::parse_event_t event, Json& value) {
    if (event == Json::parse_event_t::object_start) open_objects.emplace_back();
    if (event == Json::parse_event_t::object_end) open_objects.pop_back();
    if (event == Json::parse_event_t::key) {
      std::set<std::string>& keys = open_objects.back();
      if (!keys.insert(value.get<std::string>()).second) {
        refuse(path, fmt::format("the key {} occurs twice in one object; keep one of them",
                                 value.dump().substr(0, 80)));
      }
      if (keys.size() > kMaxMembers) {
        refuse(path, fmt::format("an object has more than {} members; this is not a moe-tune table",
                                 kMaxMembers));
      }
    }
    return true;
  };
  return Json::parse(text.begin(), text.end(), watch, false);
}

// vLLM's and SGLang's fused_moe tables: token counts (and perhaps "triton_version") at top level.
void refuse_foreign_table(const Json& document, const std::string& path) {
  if (!document.is_object() || document.contains("schema")) return;
  int num_entries = 0;
  for (const Json& entry : document) {
    if (entry.is_object() && entry.contains("BLOCK_SIZE_M") &&
        (entry.contains("num_warps") || entry.contains("num_stages"))) {
      ++num_entries;
    }
  }
  if (num_entries == 0) return;
  refuse(path,
         fmt::format(
             "this is a vLLM/SGLang fused_moe table ({} token counts), not a moe-tune table. Its "
             "points are Triton compile options, one set for both GEMMs of that kernel, and mean "
             "nothing to the kernels here; it also records no hidden size, top-k, time or kernel "
             "version to validate. Tune this shape with: moe-tune search --shape E,K,H,I",
             num_entries));
}

void refuse_other_version(const Json& document, const std::string& path) {
  if (!document.is_object() || document.value("schema", Json()) != "moe-tune-table") return;
  const Json version = document.value("schema_version", Json());
  if (!version.is_number_integer() || version == kTableSchemaVersion ||
      version == kOldTableSchemaVersion) {
    return;
  }
  refuse(path,
         fmt::format("schema_version is {}: another version of moe-tune wrote this table, and "
                     "this one reads {} and {}; tune again with moe-tune search",
                     version.dump(), kOldTableSchemaVersion, kTableSchemaVersion));
}

TableIdentity read_identity(const Ordered& json) {
  TableIdentity identity;
  identity.gpu = json.at("gpu");
  identity.arch = json.at("arch");
  identity.driver = json.at("driver");
  identity.nvrtc = json.at("nvrtc");
  json.at("variants").get_to(identity.kernels.variants);
  identity.kernels.small_kernels = json.at("small_kernels");
  identity.shape.model = json.at("model");
  identity.shape.num_experts = json.at("num_experts");
  identity.shape.top_k = json.at("top_k");
  identity.shape.hidden_size = json.at("hidden_size");
  identity.shape.intermediate_size = json.at("intermediate_size");
  identity.dtype = parse_dtype(json.at("dtype").get<std::string>());
  return identity;
}

TableEntry read_entry(const Ordered& json) {
  TableEntry entry;
  entry.plan = json.at("plan").get<Plan>();
  entry.timing.median_us = json.at("median_us");
  entry.timing.p10_us = json.at("p10_us");
  entry.timing.p90_us = json.at("p90_us");
  entry.timing.num_samples = json.at("num_samples");
  entry.timing.num_discarded = json.value("num_discarded", 0);
  entry.timing.clock_mhz = json.value("clock_mhz", 0);
  entry.timing.unsteady = json.value("unsteady", false);
  entry.reference_us = json.at("reference_us");
  entry.speedup = json.at("speedup");
  entry.rel_err = json.at("rel_err");
  entry.quantisation_err = json.value("quantisation_err", 0.0);
  entry.energy_mj = json.value("energy_mj", 0.0);
  entry.workspace_bytes = json.value("workspace_bytes", std::int64_t{0});
  entry.registers = json.at("registers");
  entry.smem_bytes = json.at("smem_bytes");
  entry.source = parse_source(json.at("source").get<std::string>());
  entry.ties = json.at("ties").get<std::vector<std::string>>();
  return entry;
}

std::int64_t read_token_count(const std::string& key) {
  std::int64_t count = 0;
  const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), count);
  if (error != std::errc{} || end != key.data() + key.size())
    throw Error(ErrorKind::input, fmt::format("entries: '{}' is not a token count", key));
  return count;
}

Table read_fields(const Ordered& json) {
  Table table;
  table.identity = read_identity(json.at("identity"));
  table.created = json.at("created");
  table.command = json.at("command");
  table.routing = parse_routing(json.at("routing").get<std::string>());
  // Not in the schema: valijson compares 64-bit unsigned numbers as signed ones.
  if (!json.at("seed").is_number_unsigned())
    throw Error(ErrorKind::input, fmt::format("seed is {}, it must be an integer from 0 to 2^64-1",
                                              json.at("seed").dump()));
  table.seed = json.at("seed");
  table.objective = parse_objective(json.value("objective", "time"));
  table.missing = json.at("missing").get<std::set<std::int64_t>>();
  const Problem largest{table.identity.shape, table.identity.dtype, 1, table.routing, table.seed};
  check(largest);
  for (const auto& [key, entry] : json.at("entries").items()) {
    Problem problem = largest;
    problem.num_tokens = read_token_count(key);
    check(problem);
    table.entries.emplace(problem.num_tokens, read_entry(entry));
  }
  return table;
}

}  // namespace

Table parse_table(std::string_view text, const std::string& path) {
  Json document = parse_unique(text, path);
  Ordered ordered = parse_json(text, path);
  refuse_foreign_table(document, path);
  refuse_other_version(document, path);
  upgrade_table(document, path);
  upgrade_table(ordered, path);
  check_schema(document, path);
  try {
    return read_fields(ordered);
  } catch (const Error& error) {
    refuse(path, error.what());
  } catch (const Ordered::exception& error) {
    refuse(path, error.what());
  }
}

Table read_table(const std::string& path) {
  std::error_code ignored;
  if (std::filesystem::exists(path, ignored)) {
    // A device or a pipe may never end.
    if (!std::filesystem::is_regular_file(path, ignored))
      refuse(path, "not a regular file; name a table's .json file");
    const std::uintmax_t size = std::filesystem::file_size(path, ignored);
    if (!ignored && size > kMaxFileBytes) {
      refuse(path, fmt::format("{} bytes are too many for a table, at most {} are read; is this a "
                               "journal or a record?",
                               size, kMaxFileBytes));
    }
  }
  return parse_table(read_file(path), path);
}

}  // namespace moetune
