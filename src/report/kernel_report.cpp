#include "report/kernel_report.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "report/summary.hpp"
#include "report/text_table.hpp"

namespace moetune {
namespace {

using Json = nlohmann::ordered_json;

constexpr double kGoodFraction = 0.85;  // of the matrix rate; below it a note gives the counters
constexpr const char* kNote =
    "us: of each kernel alone and from a rest, by ncu (Nsight Compute): under load GPUs clock "
    "lower; "
    "floor: the larger of the bytes that it must move / read rate and its flops / matrix rate, "
    "above "
    "100 % where what it reads was in L2; L2 %: of the sectors that reads look for there";

std::string number(double value, int digits) {
  return std::isfinite(value) ? fmt::format("{:.{}f}", value, digits) : "-";
}

// What follows from a kernel's time and work; kUnknown where either is missing.
struct Rates {
  double floor_us = kUnknown;
  double fraction = kUnknown;
  double tflops = kUnknown;
  double gbps = kUnknown;  // of the bytes that it must move
  double dram_gbps = kUnknown;
  double matrix_fraction = kUnknown;
};

Dtype product_dtype(const KernelWork& work) {
  return work.fp8 ? Dtype::fp8_block : Dtype::bf16;
}

Rates rates_of(const Gpu& gpu, const KernelPair& pair) {
  Rates rates;
  const double time_us = pair.counters ? pair.counters->time_us : kUnknown;
  if (pair.counters) {
    rates.dram_gbps =
        (pair.counters->dram_read_bytes + pair.counters->dram_write_bytes) / time_us / 1e3;
  }
  if (!pair.work) return rates;
  const KernelWork& work = *pair.work;
  rates.gbps = work.bytes / time_us / 1e3;
  if (work.flops > 0) rates.tflops = work.flops / time_us / 1e6;
  const double floor = floor_us(gpu, product_dtype(work), work.bytes, work.flops);
  if (!(floor > 0)) return rates;
  rates.floor_us = floor;
  rates.fraction = floor / time_us;
  rates.matrix_fraction = rates.tflops / matrix_tflops(gpu, product_dtype(work));
  return rates;
}

// Whether products, and not bytes, are what bounds it.
bool is_compute_bound(const Gpu& gpu, const KernelWork& work) {
  return work.flops / matrix_tflops(gpu, product_dtype(work)) / 1e6 >
         work.bytes / gpu.read_gbps / 1e3;
}

// What the counters say of a GEMM that stays under the matrix rate.
std::string why_slow(const Gpu& gpu, const KernelPair& pair) {
  if (!pair.work || !pair.counters || pair.work->flops == 0) return "";
  const Rates rates = rates_of(gpu, pair);
  if (!(rates.matrix_fraction < kGoodFraction) || !is_compute_bound(gpu, *pair.work)) return "";
  const KernelCounters& c = *pair.counters;
  std::string text = fmt::format(
      "{}: {:.1f} % of the matrix rate: tensor pipe {} % busy, L2 hit rate {} %, DRAM {} of {:.0f} "
      "GB/s, {} waves of {} blocks, SM clock {} MHz",
      pair.work->step, 100 * rates.matrix_fraction, number(c.tensor_busy_pct, 1),
      number(100 * c.l2_hit_rate(), 1), number(rates.dram_gbps, 0), gpu.read_gbps,
      number(c.waves, 2), number(c.grid, 0), number(c.sm_mhz, 0));
  if (pair.work->padding > 0)
    text += fmt::format("; tiles hold {:.3f} times the rows there are", pair.work->padding);
  if (pair.work->rounds_full > 0)
    text += fmt::format("; its blocks' rounds are {:.1f} % full", 100 * pair.work->rounds_full);
  return text + "\n";
}

double sum_us(const KernelRow& row) {
  double sum = 0;
  for (const KernelCounters& kernel : row.counters) sum += kernel.time_us;
  return row.counters.empty() ? kUnknown : sum;
}

std::string layer_line(const BenchRun& run, const KernelRow& row) {
  if (row.status != LevelStatus::ok)
    return fmt::format("layer: {}: {}\n", to_string(row.status), row.reason);
  const double floor = floor_us(run.gpu, row.problem);
  return fmt::format(
      "layer {:.1f} us by the protocol, {:.1f} % of its floor of {:.1f} us; its "
      "kernels, one after the other, {} us\n",
      row.timing.median_us, 100 * floor / row.timing.median_us, floor, number(sum_us(row), 1));
}

Json pair_json(const Gpu& gpu, const KernelPair& pair) {
  const Rates rates = rates_of(gpu, pair);
  const KernelCounters c = pair.counters ? *pair.counters : KernelCounters{};
  const KernelWork work = pair.work ? *pair.work : KernelWork{};
  return {{"step", pair.work ? Json(work.step) : Json(nullptr)},  // NaN is written as null
          {"kernel", pair.counters ? c.name : work.kernel},
          {"time_us", c.time_us},
          {"floor_us", rates.floor_us},
          {"fraction_of_floor", rates.fraction},
          {"bytes", positive_or_null(work.bytes)},
          {"flops", positive_or_null(work.flops)},
          {"tflops", rates.tflops},
          {"fraction_of_matrix_rate", rates.matrix_fraction},
          {"gbps", rates.gbps},
          {"dram_read_bytes", c.dram_read_bytes},
          {"dram_write_bytes", c.dram_write_bytes},
          {"dram_gbps", rates.dram_gbps},
          {"l2_hit_rate", c.l2_hit_rate()},
          {"tensor_busy", c.tensor_busy_pct / 100},
          {"sm_mhz", c.sm_mhz},
          {"waves", c.waves},
          {"grid", c.grid},
          {"padding", positive_or_null(work.padding)},
          {"rounds_full", positive_or_null(work.rounds_full)}};
}

}  // namespace

std::vector<KernelPair> pair_kernels(const KernelRow& row) {
  std::vector<KernelPair> pairs;
  if (row.counters.empty()) {
    for (const KernelWork& work : row.works) pairs.push_back({&work, nullptr});
    return pairs;
  }
  const bool as_expected =
      std::equal(row.works.begin(), row.works.end(), row.counters.begin(), row.counters.end(),
                 [](const KernelWork& work, const KernelCounters& kernel) {
                   return kernel.name.find(work.kernel) != std::string::npos;
                 });
  for (std::size_t i = 0; i < row.counters.size(); ++i)
    pairs.push_back({as_expected ? &row.works[i] : nullptr, &row.counters[i]});
  return pairs;
}

std::string kernel_text(const BenchRun& run, std::span<const KernelRow> rows) {
  std::string text = fmt::format("{}, driver {}, {} routing, seed {}\n", run.gpu.name,
                                 run.gpu.driver, to_string(run.routing), run.seed);
  for (const KernelRow& row : rows) {
    TextTable table({"<step", "<kernel", "us", "floor us", "% of floor", "TFLOP/s", "GB/s",
                     "DRAM GB/s", "L2 %", "tensor %", "waves", "SM MHz"});
    std::string notes;
    for (const KernelPair& pair : pair_kernels(row)) {
      const Rates rates = rates_of(run.gpu, pair);
      const KernelCounters c = pair.counters ? *pair.counters : KernelCounters{};
      table.add({pair.work ? pair.work->step : "-", pair.counters ? c.name : pair.work->kernel,
                 number(c.time_us, 1), number(rates.floor_us, 1), number(100 * rates.fraction, 1),
                 number(rates.tflops, 0), number(rates.gbps, 0), number(rates.dram_gbps, 0),
                 number(100 * c.l2_hit_rate(), 1), number(c.tensor_busy_pct, 1), number(c.waves, 2),
                 number(c.sm_mhz, 0)});
      notes += why_slow(run.gpu, pair);
    }
    if (!row.no_counters.empty()) notes += fmt::format("no counters: {}\n", row.no_counters);
    text += fmt::format("\n{}, {}, {} tokens, plan: {}\n{}{}{}", row.model,
                        to_string(row.problem.dtype), row.problem.num_tokens, row.lookup,
                        table.text(), layer_line(run, row), notes);
  }
  return text + "\n" + kNote + "\n";
}

Json kernel_row_json(const BenchRun& run, const KernelRow& row) {
  const bool good = row.status == LevelStatus::ok && row.timing.median_us > 0;
  const double floor = floor_us(run.gpu, row.problem);
  Json json = {{"kind", "kernels"},
               {"model", row.model},
               {"dtype", to_string(row.problem.dtype)},
               {"num_tokens", row.problem.num_tokens},
               {"routing", to_string(run.routing)},
               {"source", to_string(Source::measured)},
               {"lookup", row.lookup},
               {"gemm1", step_text(row.plan, "gemm1")},
               {"gemm2", step_text(row.plan, "gemm2")},
               {"status", to_string(row.status)},
               {"reason", row.reason},
               {"layer_us", positive_or_null(good ? row.timing.median_us : 0)},
               {"p10_us", positive_or_null(good ? row.timing.p10_us : 0)},
               {"p90_us", positive_or_null(good ? row.timing.p90_us : 0)},
               {"rel_err", good ? Json(row.rel_err) : Json(nullptr)},
               {"floor_us", positive_or_null(floor)},
               {"fraction_of_floor", positive_or_null(good ? floor / row.timing.median_us : 0)},
               {"kernels_us", sum_us(row)},
               {"kernels", Json::array()},
               {"no_counters", row.no_counters.empty() ? Json(nullptr) : Json(row.no_counters)},
               {"command", run.command},
               {"commit", run.commit},
               {"date", run.date}};
  for (const KernelPair& pair : pair_kernels(row))
    json["kernels"].push_back(pair_json(run.gpu, pair));
  return json;
}

Json kernel_json(const BenchRun& run, std::span<const KernelRow> rows) {
  Json json = run_json(run);
  for (const KernelRow& row : rows) json["rows"].push_back(kernel_row_json(run, row));
  return json;
}

}  // namespace moetune
