// What `moe-tune bench` timed, for people and for programs; and what others reach on the same work.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <tuple>

#include "core/gpu.hpp"
#include "core/problem.hpp"
#include "core/trial.hpp"

namespace moetune {

// One whole layer at one token count.
struct BenchRow {
  std::string model;  // with its shard: "deepseek-v3-tp8"
  Problem problem;
  std::string lookup;  // how the plan was chosen: "exact", "nearest 64", "fallback", "given", ...
  Trial trial;         // Stage::layer; one that is not ok has no time
};

// What all rows have in common.
struct BenchRun {
  Gpu gpu;
  Routing routing;
  std::uint64_t seed = 0;
  std::string commit;  // as the user names it; empty when not said
  std::string command;
  std::string date;  // ISO 8601 UTC
};

// The simple roofline: the larger of layer_bytes() at the GPU's read bandwidth and layer_flops() at
// its matrix rate for the dtype. 0 when a rate is not known.
double floor_us(const Gpu& gpu, const Problem& problem);
// The same of anything that moves `bytes` and does `flops` at the matrix rate for the dtype.
double floor_us(const Gpu& gpu, Dtype dtype, double bytes, double flops);
// The GPU's matrix rate for the dtype, TFLOP/s; 0 when it is not known.
double matrix_tflops(const Gpu& gpu, Dtype dtype);

using LayerKey = std::tuple<std::string, std::string, std::int64_t>;  // model, dtype, num_tokens

// Others' times of a layer, microseconds; 0 where there is none.
struct PeerTimes {
  double vllm_tuned_us = 0;
  double best_peer_us = 0;
  double floor_us = 0;  // as that measurement defines it
};
using Peers = std::map<LayerKey, PeerTimes>;

// Reads {"gpu": ..., "rows": [{"model", "dtype", "num_tokens", "vllm_triton_tuned_us",
// "best_peer_us", "floor_us"}, ...]}; times may be absent or null. Throws Error(input) naming the
// file and the row; also for times of another GPU than `gpu`.
Peers read_peers(const std::string& path, const Gpu& gpu);

// Columns of comparisons only when `peers` holds any.
std::string bench_text(const BenchRun& run, std::span<const BenchRow> rows, const Peers& peers);
nlohmann::ordered_json bench_json(const BenchRun& run, std::span<const BenchRow> rows,
                                  const Peers& peers);
// What the JSON of every other mode begins with; "rows" is empty.
nlohmann::ordered_json run_json(const BenchRun& run);

// "portable:BLOCK_SIZE_M=64,...", the form that --gemm1 and --gemm2 take; "" without such a step.
std::string step_text(const Plan& plan, std::string_view op);

}  // namespace moetune
