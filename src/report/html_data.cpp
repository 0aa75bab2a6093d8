#include "report/html_data.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "core/error.hpp"
#include "report/summary.hpp"
#include "table/merge.hpp"

namespace moetune {
namespace {

using Json = nlohmann::ordered_json;

void read_header(const Json& header, ReportData& data) {
  try {
    const Json& json = header.at("identity");
    TableIdentity& identity = data.identity;
    json.at("gpu").get_to(identity.gpu);
    json.at("arch").get_to(identity.arch);
    json.at("driver").get_to(identity.driver);
    json.at("nvrtc").get_to(identity.nvrtc);
    json.at("variant_hashes").get_to(identity.kernels.variants);
    json.at("small_kernels").get_to(identity.kernels.small_kernels);
    json.at("model").get_to(identity.shape.model);
    json.at("num_experts").get_to(identity.shape.num_experts);
    json.at("top_k").get_to(identity.shape.top_k);
    json.at("hidden_size").get_to(identity.shape.hidden_size);
    json.at("intermediate_size").get_to(identity.shape.intermediate_size);
    identity.dtype = parse_dtype(json.at("dtype").get<std::string>());
    data.routing = parse_routing(json.at("routing").get<std::string>());
    json.at("strategy").get_to(data.strategy);
    header.at("created").get_to(data.created);
    header.at("command").get_to(data.command);
  } catch (const Json::exception& error) {
    throw Error(
        ErrorKind::input,
        fmt::format("the journal's header is not as this program writes it: {}", error.what()));
  }
}

// Rates of a GPU that is not known offline are not known here: then there is no floor to show.
void look_up_rates(ReportData& data) {
  for (const auto& [short_name, gpu] : known_gpus()) {
    if (gpu.name != data.identity.gpu) continue;
    data.read_gbps = gpu.read_gbps;
    data.tflops = is_fp8(data.identity.dtype) ? gpu.fp8_tflops : gpu.bf16_tflops;
  }
}

void check_table(const ReportData& data, const Table& table) {
  const auto differ = [](std::string_view what, const auto& theirs, const auto& ours) {
    throw Error(ErrorKind::input,
                fmt::format("the table is of another search: its {} is {}, the journal's is {}; "
                            "give the table that this search wrote, or leave out --table",
                            what, theirs, ours));
  };
  const TableIdentity& a = table.identity;
  const TableIdentity& b = data.identity;
  if (a.gpu != b.gpu) differ("GPU", a.gpu, b.gpu);
  for (const auto& name : conflicting_variants(variants_used(table), a.kernels, b.kernels)) {
    differ(fmt::format("hash of {}", name), a.kernels.variants.at(name),
           b.kernels.variants.at(name));
  }
  if (a.dtype != b.dtype) differ("dtype", to_string(a.dtype), to_string(b.dtype));
  if (!(table.routing == data.routing)) {
    differ("routing", to_string(table.routing), to_string(data.routing));
  }
  const auto sizes = [](const LayerShape& s) {
    return fmt::format("E={} K={} H={} I={}", s.num_experts, s.top_k, s.hidden_size,
                       s.intermediate_size);
  };
  if (sizes(a.shape) != sizes(b.shape)) differ("shape", sizes(a.shape), sizes(b.shape));
}

void add_entry(const Json& record, ReportData& data) {
  LayerPoint& point = data.layers[record.at("num_tokens").get<std::int64_t>()];
  TableEntry& entry = point.entry;
  record.at("plan").get_to(entry.plan);
  record.at("median_us").get_to(entry.timing.median_us);
  record.at("reference_us").get_to(entry.reference_us);
  entry.speedup = entry.reference_us / entry.timing.median_us;
  record.at("tie").get_to(point.is_tie);
  entry.source = parse_source(record.at("source").get<std::string>());
}

void add_limits(std::int64_t num_tokens, const ReportData& data, LayerPoint& point) {
  const Problem problem{data.identity.shape, data.identity.dtype, num_tokens, data.routing, 0};
  point.bytes = layer_bytes(problem);
  point.flops = layer_flops(problem);
  if (data.read_gbps > 0) point.floor_us = point.bytes / (data.read_gbps * 1e3);
  if (data.tflops > 0) {
    point.floor_us = std::max(point.floor_us, point.flops / (data.tflops * 1e6));
  }
}

void read_others(const SearchRecord& record, ReportData& data) {
  // A stage that was searched again counts once.
  std::map<std::string, const Json*> stages;
  const Json* last_run = nullptr;
  for (const Json& other : record.others) {
    const std::string kind = other.at("record");
    if (kind == "stage") {
      stages[fmt::format("{} {}", other.at("stage").dump(), other.at("num_tokens").dump())] =
          &other;
    } else if (kind == "entry") {
      add_entry(other, data);
    } else if (kind == "run") {
      data.wall_s += other.value("wall_s", 0.0);
      data.busy_s += other.value("busy_s", 0.0);
      // What a run took from the journal, an earlier run has counted.
      data.num_trials += other.value("num_trials", std::uint64_t{0}) -
                         other.value("num_resumed", std::uint64_t{0});
      data.complete = !other.value("interrupted", false);
      last_run = &other;
    }
  }
  for (const auto& [key, stage] : stages) {
    for (const auto& [rule, count] : stage->at("rejected").items()) {
      data.rejected[rule] += count.get<std::uint64_t>();
    }
  }
  for (const auto& [trial, elapsed_s] : record.trials) {
    if (trial.status == TrialStatus::rejected) ++data.rejected[trial.rule];
  }
  // A trimmed journal lacks rejected trials, but not what its run counted.
  if (last_run == nullptr || !last_run->contains("rejected")) return;
  for (const auto& [rule, count] : last_run->at("rejected").items()) {
    std::uint64_t& total = data.rejected[rule];
    total = std::max(total, count.get<std::uint64_t>());
  }
}

}  // namespace

std::set<Source> ReportData::sources() const {
  std::set<Source> sources;
  for (const auto& [num_tokens, point] : layers) sources.insert(point.entry.source);
  return sources;
}

ReportData gather(const SearchRecord& record, const std::optional<Table>& table) {
  ReportData data;
  read_header(record.header, data);
  look_up_rates(data);
  try {
    read_others(record, data);
  } catch (const Json::exception& error) {
    throw Error(
        ErrorKind::input,
        fmt::format("a record of the journal is not as this program writes it: {}", error.what()));
  }
  if (table) {
    check_table(data, *table);
    data.layers.clear();
    data.complete = table->complete();
    for (const auto& [num_tokens, entry] : table->entries) {
      data.layers[num_tokens] = {entry, 0, 0, 0, true};
    }
  }
  for (auto& [num_tokens, point] : data.layers) add_limits(num_tokens, data, point);
  data.trials = record.trials;
  data.num_trials = std::max<std::uint64_t>(data.num_trials, record.trials.size());
  for (const auto& [trial, elapsed_s] : record.trials) {
    if (trial.status == TrialStatus::ok || trial.status == TrialStatus::rejected) continue;
    RejectedRule& failed = data.failed[trial.status];
    if (failed.count++ == 0) failed.example = trial.reason;
  }
  return data;
}

std::string source_names(const std::set<Source>& sources) {
  std::string names;
  for (const Source source : sources) {
    if (!names.empty()) names += ", ";
    names += to_string(source);
  }
  return names;
}

}  // namespace moetune
