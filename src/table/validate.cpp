#include "table/validate.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <utility>

#include "kernels/variant.hpp"

namespace moetune {
namespace {

constexpr std::array<std::string_view, 6> kChecks = {"identity",   "coverage",    "legality",
                                                     "provenance", "correctness", "speed"};

bool all_pass(const std::vector<Finding>& findings) {
  return std::none_of(findings.begin(), findings.end(), [](const Finding& f) { return f.fails; });
}

void compare(TableReport& report, std::string_view what, const std::string& recorded,
             const std::string& here, std::string_view remedy) {
  if (recorded == here) return;
  report.findings.push_back({Check::identity, fmt::format("the table is for {} '{}', here it is "
                                                          "'{}'; {}",
                                                          what, recorded, here, remedy)});
}

void check_identity(TableReport& report, const Expectation& expectation) {
  const TableIdentity& identity = report.identity;
  const std::string name = std::filesystem::path(report.path).filename().string();
  if (const std::string expected = table_file_name(identity); name != expected) {
    report.findings.push_back({Check::identity, fmt::format("tables are looked up by name, and "
                                                            "this one's is {}; rename the file",
                                                            expected)});
  }
  if (expectation.gpu) {
    compare(report, "GPU", identity.gpu, expectation.gpu->name, "tune on this GPU");
    compare(report, "architecture", identity.arch, arch_name(*expectation.gpu), "tune anew");
    if (!expectation.gpu->driver.empty() && identity.driver != expectation.gpu->driver) {
      report.findings.push_back({Check::identity,
                                 fmt::format("tuned with driver {}, here it is {}", identity.driver,
                                             expectation.gpu->driver),
                                 false});
    }
  }
  if (!expectation.nvrtc.empty())
    compare(report, "NVRTC", identity.nvrtc, expectation.nvrtc, "tune anew with this compiler");
  if (identity.kernels.small_kernels != expectation.kernels.small_kernels) {
    report.findings.push_back(
        {Check::identity, "the kernels around the GEMMs have changed since: times may differ a bit",
         false});
  }
}

// Only of the entry's own variants: what else changes leaves its times and results as they are.
void check_kernels(EntryReport& report, const TableReport& table, const Expectation& expectation) {
  const KernelHashes& then = table.identity.kernels;
  const KernelHashes& now = expectation.kernels;
  const std::string folder = std::filesystem::path(table.path).parent_path().string();
  for (const std::string& name : changed_variants(variants_of(report.entry.plan), then, now)) {
    const std::string what =
        !now.variants.contains(name)    ? fmt::format("this program has no variant {}", name)
        : !then.variants.contains(name) ? fmt::format("the table has no hash of variant {}", name)
                                        : fmt::format("variant {} has changed since", name);
    report.findings.push_back(
        {Check::identity, fmt::format("{}; search again in {} with --tokens {}", what,
                                      folder.empty() ? "." : folder, report.num_tokens)});
  }
}

void check_coverage(TableReport& report, const Table& table, const Expectation& expectation) {
  std::set<std::int64_t> missing = table.missing;
  for (const std::int64_t count : expectation.token_counts)
    if (!table.entries.contains(count)) missing.insert(count);
  if (!missing.empty()) {
    report.findings.push_back(
        {Check::coverage,
         fmt::format("no entry for {} token counts ({}){}; tune them with --tokens {}",
                     missing.size(), fmt::join(missing, ", "),
                     table.complete() ? "" : ", some of which the search was asked for",
                     fmt::join(missing, ","))});
  }
}

// The GPU whose limits the points must respect. A GPU that is not known by name is judged by the
// limits of its architecture.
std::optional<Gpu> limits_of(TableReport& report, const Expectation& expectation) {
  const TableIdentity& identity = report.identity;
  if (expectation.gpu && expectation.gpu->name == identity.gpu) return expectation.gpu;
  try {
    return known_gpu(identity.gpu);
  } catch (const Error&) {
  }
  try {
    return gpu_for_arch(identity.arch);
  } catch (const Error& error) {
    report.findings.push_back(
        {Check::legality, fmt::format("the points cannot be judged, {}", error.what())});
    return std::nullopt;
  }
}

std::optional<std::string> illegal_step(const Step& step, const Gpu& gpu, const Problem& problem,
                                        Stage stage) {
  const Variant& variant = find_variant(step.variant);
  if (!variant.supports(gpu, problem.dtype)) {
    return fmt::format("variant {} does not run {} on {}", step.variant, to_string(problem.dtype),
                       gpu.name);
  }
  // `both` is the union of what any search may have written. Strict: a value outside the lists was
  // never tried, and the rules need not expect it.
  SearchSpace space = variant.space(gpu, problem, stage, Fp8Mode::both);
  std::erase_if(space.constraints, [](const Constraint& c) { return c.spares_search; });
  const auto rejection = space.reject(step.point, true);
  if (!rejection) return std::nullopt;
  return fmt::format("{}: {}", rejection->rule, rejection->reason);
}

void check_legality(EntryReport& report, const Gpu& gpu, const Problem& problem) {
  const auto fail = [&](std::string message) {
    report.findings.push_back({Check::legality, std::move(message)});
  };
  for (const Step& step : report.entry.plan.steps)
    if (step.op != "gemm1" && step.op != "gemm2") fail(fmt::format("unknown op '{}'", step.op));
  for (const auto& [op, stage] : {std::pair{"gemm1", Stage::gemm1}, {"gemm2", Stage::gemm2}}) {
    const auto& steps = report.entry.plan.steps;
    const auto count = std::count_if(steps.begin(), steps.end(),
                                     [op = op](const Step& step) { return step.op == op; });
    if (count != 1) {
      fail(fmt::format("the plan has {} {} steps, it needs one", count, op));
      continue;
    }
    try {
      if (auto reason = illegal_step(*report.entry.plan.find(op), gpu, problem, stage))
        fail(fmt::format("{}: {}", op, *reason));
    } catch (const Error& error) {
      fail(fmt::format("{}: {}", op, error.what()));
    }
  }
  if (const std::string defect = pair_defect(report.entry.plan); !defect.empty()) fail(defect);
}

void check_provenance(EntryReport& report) {
  const TableEntry& entry = report.entry;
  const auto fail = [&](std::string message) {
    report.findings.push_back({Check::provenance, std::move(message)});
  };
  if (entry.source != Source::measured) {
    fail(fmt::format("the time is {}, not measured; tune on the GPU", to_string(entry.source)));
    return;
  }
  const Timing& timing = entry.timing;
  if (timing.num_samples == 0) fail("said to be measured, but from 0 samples");
  if (timing.p10_us > timing.median_us || timing.median_us > timing.p90_us) {
    fail(fmt::format("p10 {} us, median {} us and p90 {} us are out of order", timing.p10_us,
                     timing.median_us, timing.p90_us));
  }
  const double speedup = entry.reference_us / timing.median_us;
  // Times and speedup are written with three decimals.
  if (!(std::abs(entry.speedup - speedup) <= 0.01 * speedup + 0.001))
    fail(fmt::format("speedup {} is not reference / median = {:.3f}", entry.speedup, speedup));
}

}  // namespace

std::string_view to_string(Check check) {
  return kChecks.at(static_cast<std::size_t>(check));
}

bool EntryReport::good() const {
  return all_pass(findings);
}

bool TableReport::good() const {
  return !error && all_pass(findings) &&
         std::all_of(entries.begin(), entries.end(), [](const EntryReport& e) { return e.good(); });
}

Problem largest_problem(const Table& table) {
  Problem problem{table.identity.shape, table.identity.dtype, 1, table.routing, table.seed};
  if (!table.entries.empty()) problem.num_tokens = table.entries.rbegin()->first;
  return problem;
}

TableReport check_table(const std::string& path, const Table& table,
                        const Expectation& expectation) {
  TableReport report;
  report.path = path;
  report.identity = table.identity;
  check_identity(report, expectation);
  check_coverage(report, table, expectation);
  const std::optional<Gpu> gpu = limits_of(report, expectation);
  Problem problem = largest_problem(table);
  for (const auto& [num_tokens, entry] : table.entries) {
    EntryReport& entry_report = report.entries.emplace_back();
    entry_report.num_tokens = num_tokens;
    entry_report.entry = entry;
    problem.num_tokens = num_tokens;
    check_kernels(entry_report, report, expectation);
    if (gpu) check_legality(entry_report, *gpu, problem);
    check_provenance(entry_report);
  }
  return report;
}

}  // namespace moetune
