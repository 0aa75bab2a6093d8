#include "report/bench_report.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <vector>

#include "core/error.hpp"
#include "core/text.hpp"
#include "report/summary.hpp"
#include "report/text_table.hpp"

namespace moetune {
namespace {

using Json = nlohmann::ordered_json;

constexpr double kUsPerS = 1e6;

// What follows from a row's time; 0 where it is not known.
struct Rates {
  double tflops = 0;
  double gbps = 0;
  double floor_us = 0;
  double tokens_per_s = 0;
};

Rates rates_of(const BenchRun& run, const BenchRow& row) {
  Rates rates;
  rates.floor_us = floor_us(run.gpu, row.problem);
  if (!has_good_time(row.trial)) return rates;
  const double time_us = row.trial.timing.median_us;
  rates.tflops = layer_flops(row.problem) / time_us / 1e6;
  rates.gbps = layer_bytes(row.problem) / time_us / 1e3;
  rates.tokens_per_s = static_cast<double>(row.problem.num_tokens) / time_us * kUsPerS;
  return rates;
}

PeerTimes peer_of(const BenchRow& row, const Peers& peers) {
  const auto found =
      peers.find({row.model, std::string(to_string(row.problem.dtype)), row.problem.num_tokens});
  return found == peers.end() ? PeerTimes{} : found->second;
}

// This row's time over another's; 0 where either is missing.
double ratio(const BenchRow& row, double other_us) {
  return has_good_time(row.trial) && other_us > 0 ? row.trial.timing.median_us / other_us : 0;
}

std::string number(double value, int digits, std::string_view absent = "-") {
  return std::isfinite(value) && value > 0 ? fmt::format("{:.{}f}", value, digits)
                                           : std::string(absent);
}

// Nothing is run offline, so nothing is compared with the reference.
bool is_checked(const Trial& trial) {
  return trial.source == Source::measured && trial.status == TrialStatus::ok;
}

std::string heading(const BenchRun& run, std::span<const BenchRow> rows) {
  std::string text = run.gpu.name;
  text += run.gpu.offline ? ", offline" : fmt::format(", driver {}", run.gpu.driver);
  text += fmt::format(", {} routing, seed {}\n", to_string(run.routing), run.seed);
  std::set<std::string> rates;
  for (const BenchRow& row : rows) {
    rates.insert(fmt::format("{:.0f} TFLOP/s ({})", matrix_tflops(run.gpu, row.problem.dtype),
                             to_string(row.problem.dtype)));
  }
  if (run.gpu.read_gbps > 0) {
    text += fmt::format(
        "floor: the simple roofline, the larger of bytes / {:.0f} GB/s and flops / "
        "{}\n",
        run.gpu.read_gbps, fmt::join(rates, ", "));
  } else {
    text += "floor: unknown, there are no rates on record for this GPU\n";
  }
  return text;
}

std::int64_t read_count(const Json& row, const std::string& where) {
  if (row.contains("num_tokens") && row.at("num_tokens").is_number_integer())
    return row.at("num_tokens").get<std::int64_t>();
  throw Error(ErrorKind::input, fmt::format("{}: 'num_tokens' must be an integer", where));
}

std::string read_text(const Json& row, const char* name, const std::string& where) {
  if (row.contains(name) && row.at(name).is_string()) return row.at(name).get<std::string>();
  throw Error(ErrorKind::input, fmt::format("{}: '{}' must be a text", where, name));
}

double read_time(const Json& row, const char* name, const std::string& where) {
  if (!row.contains(name) || row.at(name).is_null()) return 0;
  if (row.at(name).is_number() && row.at(name).get<double>() > 0) return row.at(name).get<double>();
  throw Error(ErrorKind::input,
              fmt::format("{}: '{}' must be a positive number of microseconds", where, name));
}

}  // namespace

double matrix_tflops(const Gpu& gpu, Dtype dtype) {
  return is_fp8(dtype) ? gpu.fp8_tflops : gpu.bf16_tflops;
}

double floor_us(const Gpu& gpu, Dtype dtype, double bytes, double flops) {
  const double tflops = matrix_tflops(gpu, dtype);
  if (!(gpu.read_gbps > 0) || !(tflops > 0)) return 0;
  return std::max(bytes / gpu.read_gbps / 1e3, flops / tflops / 1e6);
}

double floor_us(const Gpu& gpu, const Problem& problem) {
  return floor_us(gpu, problem.dtype, layer_bytes(problem), layer_flops(problem));
}

Peers read_peers(const std::string& path, const Gpu& gpu) {
  const Json json = parse_json(read_file(path), path);
  if (!json.is_object() || !json.contains("rows") || !json.at("rows").is_array()) {
    throw Error(ErrorKind::input,
                fmt::format("{}: no times to compare with: it needs an object with 'rows'", path));
  }
  if (json.contains("gpu") && json.at("gpu") != gpu.name) {
    throw Error(ErrorKind::input,
                fmt::format("{} holds times of {}, this is {}; leave out --compare", path,
                            json.at("gpu").dump(), gpu.name));
  }
  Peers peers;
  for (std::size_t i = 0; i < json.at("rows").size(); ++i) {
    const Json& row = json.at("rows")[i];
    const std::string where = fmt::format("{}: row {}", path, i + 1);
    const LayerKey key{read_text(row, "model", where), read_text(row, "dtype", where),
                       read_count(row, where)};
    peers[key] = {read_time(row, "vllm_triton_tuned_us", where),
                  read_time(row, "best_peer_us", where), read_time(row, "floor_us", where)};
  }
  return peers;
}

std::string bench_text(const BenchRun& run, std::span<const BenchRow> rows, const Peers& peers) {
  std::vector<std::string> headings = {"<model",  "<dtype",  "tokens", "median us",  "p10",
                                       "p90",     "TFLOP/s", "GB/s",   "% of floor", "tokens/s",
                                       "rel_err", "<lookup", "<source"};
  if (!peers.empty()) headings.insert(headings.end(), {"/vLLM tuned", "/best peer", "/floor"});
  TextTable table(headings);
  std::string failures;
  std::set<Source> sources;
  for (const BenchRow& row : rows) {
    const Trial& trial = row.trial;
    const bool good = has_good_time(trial);
    const Timing timing = good ? trial.timing : Timing{};
    const Rates rates = rates_of(run, row);
    std::vector<std::string> cells = {
        row.model,
        std::string(to_string(row.problem.dtype)),
        fmt::format("{}", row.problem.num_tokens),
        number(timing.median_us, 2),
        number(timing.p10_us, 2),
        number(timing.p90_us, 2),
        number(rates.tflops, 1),
        number(rates.gbps, 0),
        number(good ? 100 * rates.floor_us / timing.median_us : 0, 1),
        number(rates.tokens_per_s, 0),
        is_checked(trial) ? fmt::format("{:.5f}", trial.rel_err) : "-",
        row.lookup,
        std::string(good ? to_string(trial.source) : to_string(trial.status))};
    if (!peers.empty()) {
      const PeerTimes peer = peer_of(row, peers);
      for (const double other_us : {peer.vllm_tuned_us, peer.best_peer_us, peer.floor_us})
        cells.push_back(number(ratio(row, other_us), 2, ""));
    }
    table.add(std::move(cells));
    if (good) {
      sources.insert(trial.source);
    } else {
      failures += fmt::format("{} {} {} tokens: {}: {}\n", row.model, to_string(row.problem.dtype),
                              row.problem.num_tokens, to_string(trial.status), trial.reason);
    }
  }
  std::string text = heading(run, rows) + '\n' + table.text() + source_footnote(sources);
  if (!peers.empty()) text += "/...: this time over theirs, below 1 is faster\n";
  return text + failures;
}

Json run_json(const BenchRun& run) {
  return {{"gpu", run.gpu.name},    {"driver", run.gpu.driver}, {"commit", run.commit},
          {"command", run.command}, {"date", run.date},         {"routing", to_string(run.routing)},
          {"seed", run.seed},       {"rows", Json::array()}};
}

Json bench_json(const BenchRun& run, std::span<const BenchRow> rows, const Peers& peers) {
  Json json = {{"gpu", run.gpu.name},
               {"offline", run.gpu.offline},
               {"driver", run.gpu.driver},
               {"commit", run.commit},
               {"command", run.command},
               {"date", run.date},
               {"routing", to_string(run.routing)},
               {"seed", run.seed},
               {"floor", "simple roofline: larger of bytes / read_gbps and flops / matrix rate"},
               {"read_gbps", positive_or_null(run.gpu.read_gbps)},
               {"bf16_tflops", positive_or_null(run.gpu.bf16_tflops)},
               {"fp8_tflops", positive_or_null(run.gpu.fp8_tflops)},
               {"rows", Json::array()}};
  for (const BenchRow& row : rows) {
    const Trial& trial = row.trial;
    const bool good = has_good_time(trial);
    const Timing timing = good ? trial.timing : Timing{};
    const Rates rates = rates_of(run, row);
    Json item = {
        {"model", row.model},
        {"dtype", to_string(row.problem.dtype)},
        {"num_tokens", row.problem.num_tokens},
        {"status", to_string(trial.status)},
        {"reason", trial.reason},
        {"layer_us", positive_or_null(timing.median_us)},
        {"p10_us", positive_or_null(timing.p10_us)},
        {"p90_us", positive_or_null(timing.p90_us)},
        {"num_samples", timing.num_samples},
        {"num_discarded", timing.num_discarded},
        {"tflops", positive_or_null(rates.tflops)},
        {"gbps", positive_or_null(rates.gbps)},
        {"floor_us", positive_or_null(rates.floor_us)},
        {"fraction_of_floor", positive_or_null(good ? rates.floor_us / timing.median_us : 0)},
        {"tokens_per_s", positive_or_null(rates.tokens_per_s)},
        {"rel_err", is_checked(trial) ? Json(trial.rel_err) : Json(nullptr)},
        {"max_err", is_checked(trial) ? Json(trial.max_err) : Json(nullptr)},
        {"source", good ? Json(to_string(trial.source)) : Json(nullptr)},
        {"lookup", row.lookup},
        {"gemm1", step_text(trial.plan, "gemm1")},
        {"gemm2", step_text(trial.plan, "gemm2")}};
    if (!peers.empty()) {
      const PeerTimes peer = peer_of(row, peers);
      item["time_over_vllm_tuned"] = positive_or_null(ratio(row, peer.vllm_tuned_us));
      item["time_over_best_peer"] = positive_or_null(ratio(row, peer.best_peer_us));
      item["time_over_peers_floor"] = positive_or_null(ratio(row, peer.floor_us));
    }
    json["rows"].push_back(std::move(item));
  }
  return json;
}

std::string step_text(const Plan& plan, std::string_view op) {
  const Step* step = plan.find(op);
  return step == nullptr ? "" : fmt::format("{}:{}", step->variant, step->point.key());
}

}  // namespace moetune
