// A kernel variant and an evaluator that a session can search without a compiler or a GPU.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "core/text.hpp"
#include "kernels/variant.hpp"
#include "tests/temporary_folder.hpp"
#include "tune/session.hpp"
#include "tune/session_records.hpp"

namespace moetune::fake {

class FakeVariant : public Variant {
 public:
  std::string_view name() const override { return "fake"; }
  std::string_view help() const override { return "for tests"; }
  std::string_view source_file() const override { return "fake.cu"; }
  bool supports(const Gpu&, Dtype) const override { return true; }
  SearchSpace space(const Gpu&, const Problem&, Stage, Fp8Mode fp8) const override {
    SearchSpace space;
    space.parameters = {{"BLOCK_SIZE_M", {16, 32, 64, 128, 256}, 64, ""},
                        {"BLOCK_SIZE_N", {32, 64, 128, 256}, 64, ""},
                        {"FP8", fp8 == Fp8Mode::both ? std::vector{0, 1} : std::vector{0}, 0, ""}};
    space.constraints = {{"too_big", [](const Point& point) -> std::optional<std::string> {
                            if (point.at("BLOCK_SIZE_M") * point.at("BLOCK_SIZE_N") <= 8192) {
                              return {};
                            }
                            return "more than 8192";
                          }}};
    return space;
  }
  KernelSource source(const Gpu&, const Problem&, Stage, const Point&) const override { return {}; }
  GemmLaunch launch(const Problem&, Stage, const Point&) const override {
    return {.num_threads = 128};
  }
  double predict_us(const Gpu&, const Problem&, Stage, const Point& point) const override {
    return point.at("BLOCK_SIZE_N");  // deliberately not what is measured
  }
};

inline Plan reference(const Gpu&, const Problem&) {
  const Point point({{"BLOCK_SIZE_M", 64}, {"BLOCK_SIZE_N", 64}, {"FP8", 0}});
  return Plan{{{"gemm1", "fake", point}, {"gemm2", "fake", point}}};
}

// Best at BLOCK_SIZE_M near the token count and BLOCK_SIZE_N 128 (gemm1) or 32 (gemm2).
inline double step_us(const Step& step, std::int64_t num_tokens) {
  const double wanted_n = step.op == "gemm1" ? 128 : 32;
  const double wanted_m = std::clamp(static_cast<double>(num_tokens), 16.0, 256.0);
  const double m = std::abs(std::log2(step.point.at("BLOCK_SIZE_M") / wanted_m));
  const double n = std::abs(std::log2(step.point.at("BLOCK_SIZE_N") / wanted_n));
  return 100 + 10 * m + 7 * n - 20 * step.point.at("FP8");
}

class FakeEvaluator final : public Evaluator {
 public:
  FakeEvaluator() {
    gpu_.name = "NVIDIA Fake";
    gpu_.cc_major = 9;
  }
  const Gpu& gpu() const override { return gpu_; }
  std::string nvrtc_version() const override { return "13.0"; }
  void prefetch(std::span<const Request> announced) override {
    num_prefetched += announced.size();
    if (on_prefetch) on_prefetch(announced);
  }
  Trial evaluate(const Request& request) override {
    requests.push_back(request);
    usleep(static_cast<useconds_t>(sleep_us));
    Trial trial;
    trial.smem_bytes = 1024;
    trial.registers = 64;
    trial.rel_err = 0.001;
    for (const Step& step : request.plan.steps) {
      trial.timing.median_us += step_us(step, request.num_tokens);
      if (step.point.at("FP8") == 1) trial.rel_err = 0.02;
    }
    trial.timing.num_samples = request.thorough ? request.num_samples : 3;
    if (request.stop_above_us > 0 && trial.timing.median_us > request.stop_above_us) {
      trial.screened_out = true;
    }
    if (alter) alter(request, trial);
    trial.timing.p10_us = trial.timing.median_us * 0.999;
    trial.timing.p90_us = trial.timing.median_us * 1.001;
    return trial;
  }
  Usage usage() const override {
    const double busy_s = 0.001 * static_cast<double>(requests.size());
    return {.busy_s = busy_s, .compile_s = 3 * busy_s, .peak_host_bytes = 1 << 20};
  }

  std::vector<Request> requests;
  std::size_t num_prefetched = 0;
  int sleep_us = 0;
  std::function<void(const Request&, Trial&)> alter;
  std::function<void(std::span<const Request>)> on_prefetch;

 private:
  Gpu gpu_;
};

// A search with fakes in a folder of its own.
struct FakeSearch {
  FakeSearch() {
    settings.variants = {&variant};
    settings.reference = reference;
    settings.token_counts = {16, 32, 64};
    problem.shape = {"custom", 8, 2, 256, 512};
    problem.num_tokens = 64;
    table.created = "2026-01-31T09:30:00Z";
    table.command = "moe-tune search";
    const KernelHashes kernels{{{"fake", "0123"}, {"other", "4567"}, {"portable", "89ab"}}, "cdef"};
    table.identity = {"NVIDIA Fake", "sm_90a", "", "13.0", kernels, problem.shape, problem.dtype};
  }
  std::string journal_path() const { return folder + "/results/journal.jsonl"; }
  SearchResult run(
      FakeEvaluator& evaluator, bool resume = false,
      const std::function<bool()>& stop = [] { return false; }) {
    Journal journal(journal_path(), journal_identity(table.identity, problem, settings), "test",
                    resume);
    SearchListener nobody;
    return search(evaluator, problem, settings, table, folder + "/tables", journal, stop, nobody);
  }

  TemporaryFolder temporary;
  const std::string& folder = temporary.path();
  FakeVariant variant;
  SearchSettings settings;
  Problem problem;
  Table table;
};

// What the table says, to compare.
inline nlohmann::ordered_json entries_of(const std::string& table_path) {
  return nlohmann::ordered_json::parse(read_file(table_path)).at("entries");
}

}  // namespace moetune::fake
