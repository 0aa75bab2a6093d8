#include "table/table.hpp"

#include <fmt/format.h>

#include <cmath>

namespace moetune {
namespace {

using Json = nlohmann::ordered_json;

// A nanosecond is finer than any timer here; more digits only make tables hard to read.
double thousandths(double value) {
  return std::isfinite(value) ? std::stod(fmt::format("{:.3f}", value)) : value;
}

Json identity_json(const TableIdentity& identity) {
  return {{"gpu", identity.gpu},
          {"arch", identity.arch},
          {"driver", identity.driver},
          {"nvrtc", identity.nvrtc},
          {"variants", identity.kernels.variants},
          {"small_kernels", identity.kernels.small_kernels},
          {"model", identity.shape.model},
          {"num_experts", identity.shape.num_experts},
          {"top_k", identity.shape.top_k},
          {"hidden_size", identity.shape.hidden_size},
          {"intermediate_size", identity.shape.intermediate_size},
          {"dtype", to_string(identity.dtype)}};
}

Json entry_json(const TableEntry& entry) {
  Json json{{"plan", entry.plan},
            {"median_us", thousandths(entry.timing.median_us)},
            {"p10_us", thousandths(entry.timing.p10_us)},
            {"p90_us", thousandths(entry.timing.p90_us)},
            {"num_samples", entry.timing.num_samples}};
  if (entry.timing.num_discarded != 0) json["num_discarded"] = entry.timing.num_discarded;
  if (entry.timing.clock_mhz != 0) json["clock_mhz"] = entry.timing.clock_mhz;
  if (entry.timing.unsteady) json["unsteady"] = true;
  json["reference_us"] = thousandths(entry.reference_us);
  json["speedup"] = thousandths(entry.speedup);
  json["rel_err"] = entry.rel_err;
  if (entry.quantisation_err != 0) json["quantisation_err"] = entry.quantisation_err;
  if (entry.energy_mj != 0) json["energy_mj"] = thousandths(entry.energy_mj);
  if (entry.workspace_bytes != 0) json["workspace_bytes"] = entry.workspace_bytes;
  json["registers"] = entry.registers;
  json["smem_bytes"] = entry.smem_bytes;
  json["source"] = to_string(entry.source);
  json["ties"] = entry.ties;
  if (!is_deterministic(entry.plan)) json["deterministic"] = false;
  return json;
}

}  // namespace

std::optional<double> cost(Objective objective, const TableEntry& entry) {
  Trial trial;
  trial.timing = entry.timing;
  trial.rel_err = entry.rel_err;
  trial.quantisation_err = entry.quantisation_err;
  trial.energy_mj = entry.energy_mj;
  trial.workspace_bytes = entry.workspace_bytes;
  return cost(objective, trial);
}

std::string table_file_name(const TableIdentity& identity) {
  Gpu gpu;
  gpu.name = identity.gpu;
  const LayerShape& shape = identity.shape;
  const char* suffix = "";
  if (identity.dtype == Dtype::fp8_tensor) suffix = ",dtype=fp8_w8a8";
  if (identity.dtype == Dtype::fp8_block) suffix = ",dtype=fp8_w8a8,block_shape=[128,128]";
  return fmt::format("E={},N={},H={},topk={},device_name={}{}.json", shape.num_experts,
                     shape.intermediate_size, shape.hidden_size, shape.top_k, file_name(gpu),
                     suffix);
}

void to_json(Json& json, const Table& table) {
  json = Json{{"schema", "moe-tune-table"},
              {"schema_version", kTableSchemaVersion},
              {"identity", identity_json(table.identity)},
              {"created", table.created},
              {"command", table.command},
              {"routing", to_string(table.routing)},
              {"seed", table.seed}};
  if (table.objective != Objective::time) json["objective"] = to_string(table.objective);
  json["missing"] = table.missing;
  json["entries"] = Json::object();
  for (const auto& [num_tokens, entry] : table.entries)
    json["entries"][std::to_string(num_tokens)] = entry_json(entry);
}

}  // namespace moetune
