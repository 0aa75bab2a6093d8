// Best-config tables: the product. One file a (GPU, shape, dtype), token counts as keys.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "core/gpu.hpp"
#include "core/kernel_hashes.hpp"
#include "core/objective.hpp"
#include "core/problem.hpp"
#include "core/trial.hpp"

namespace moetune {

inline constexpr int kTableSchemaVersion = 4;

// What a table is valid for. A reader compares it with what it runs on.
struct TableIdentity {
  std::string gpu;       // "NVIDIA H200"
  std::string arch;      // "sm_90a"
  std::string driver;    // informative: a difference is a note, not an error
  std::string nvrtc;     // "13.0"
  KernelHashes kernels;  // that were tuned: an entry is stale when a variant of its plan has
                         // changed, the small kernels are a note
  LayerShape shape;
  Dtype dtype = Dtype::bf16;
};

struct TableEntry {
  Plan plan;                // gemm1 and gemm2 steps
  Timing timing;            // of the whole layer, microseconds
  double reference_us = 0;  // the reference point's layer
  double speedup = 0;       // reference_us / timing.median_us
  double rel_err = 0;
  double quantisation_err = 0;  // as Trial has these three; 0: not known
  double energy_mj = 0;
  std::int64_t workspace_bytes = 0;
  int registers = 0;
  int smem_bytes = 0;
  Source source = Source::measured;
  // Keys of other plans that were measured beside it and were within noise of it (tune/finals.hpp).
  std::vector<std::string> ties;
};

struct Table {
  TableIdentity identity;
  std::string created;  // ISO 8601 UTC
  std::string command;
  Routing routing;
  std::uint64_t seed = 0;
  Objective objective = Objective::time;  // what the entries are the best in
  std::map<std::int64_t, TableEntry> entries;
  std::set<std::int64_t> missing;  // token counts asked for that have no entry: the search was
                                   // interrupted, or nothing worked there
  bool complete() const { return missing.empty(); }
};

// As for a trial. Nothing where the entry does not say.
std::optional<double> cost(Objective objective, const TableEntry& entry);

// "E=128,N=768,H=2048,topk=8,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128,128].json"
std::string table_file_name(const TableIdentity& identity);

void to_json(nlohmann::ordered_json& json, const Table& table);
// Throws Error(input) that names `path`, and the line for malformed JSON. Reads older versions as
// table/older.hpp says. Recognises a vLLM/SGLang
// table and says what it is and why its points are not this kernel's.
Table read_table(const std::string& path);
// Merges with a table of the same identity at the same path (this table's entries win), then writes
// atomically (temporary file, fsync, rename). Of a table with older kernels the entries stay whose
// variants have not changed; the token counts of the others are missing then. What is not kept, and
// a table of another identity, is first copied to <name>.bak-<n>. Throws Error(io). Returns the
// path.
std::string write_table(const std::string& directory, const Table& table);

enum class LookupStep { exact, nearest, fallback };
struct Lookup {
  LookupStep step = LookupStep::fallback;
  std::int64_t num_tokens = 0;  // the entry's key, for exact and nearest
  const TableEntry* entry = nullptr;
};
// `keys` by how well their plans serve `num_tokens`: the exact one first, then by ratio, of two
// equal ones the larger (results/NVIDIA_H200/notes.md, "Between two keys").
std::vector<std::int64_t> nearest_keys(std::vector<std::int64_t> keys, std::int64_t num_tokens);
// Exact token count, else the nearest in the table, else fallback (use reference_plan).
Lookup look_up(const Table& table, std::int64_t num_tokens);

}  // namespace moetune
