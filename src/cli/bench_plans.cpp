#include "cli/bench_plans.hpp"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <optional>

#include "core/error.hpp"
#include "core/text.hpp"
#include "jit/compiler.hpp"
#include "kernels/variant.hpp"
#include "table/table.hpp"
#include "table/validate.hpp"

namespace moetune {
namespace {

Error bad_point(std::string_view op, std::string_view text, std::string_view why) {
  return Error(ErrorKind::usage,
               fmt::format("--{} '{}': {}; give [VARIANT:]NAME=VALUE,... with the names that "
                           "`moe-tune space` lists",
                           op, text, why));
}

// One "NAME=VALUE" of a point.
void set_value(Point& point, std::string_view part, std::string_view op, std::string_view text) {
  const std::size_t equals = std::min(part.find('='), part.size());
  const std::string_view name = part.substr(0, equals);
  if (!point.has(name)) {
    std::vector<std::string> names;
    for (const auto& [known, value] : point.values()) names.push_back(known);
    const std::string near = nearest(name, names);
    throw bad_point(op, text,
                    fmt::format("{} is not a parameter{}", name,
                                near.empty() ? "" : fmt::format(", did you mean {}?", near)));
  }
  int value = 0;
  const std::string_view digits = part.substr(std::min(equals + 1, part.size()));
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (error != std::errc() || end != digits.data() + digits.size())
    throw bad_point(op, text, fmt::format("{} needs an integer, not '{}'", name, digits));
  point.set(name, value);
}

// Why a step names no kernel of its variant. Only parameters and values: many rules of a space just
// keep a search from hopeless points, and what really cannot run shows when it is tried.
std::string defect_of(const Step& step, const Gpu& gpu, const Problem& problem) {
  SearchSpace space =
      find_variant(step.variant).space(gpu, problem, parse_stage(step.op), Fp8Mode::both);
  space.constraints.clear();
  const auto rejection = space.reject(step.point, true);
  return rejection ? rejection->reason : "";
}

std::string defect_of(const Plan& plan, const Gpu& gpu, const Problem& problem) {
  for (const char* op : {"gemm1", "gemm2"}) {
    const Step* step = plan.find(op);
    if (step == nullptr) return fmt::format("the plan has no {} step", op);
    if (const std::string defect = defect_of(*step, gpu, problem); !defect.empty())
      return fmt::format("{}: {}", op, defect);
  }
  return pair_defect(plan);
}

// What the text leaves out keeps the value it has at the variant's reference point.
Step parse_step(const std::string& text, const Step& reference, const Gpu& gpu,
                const Problem& problem) {
  const Stage stage = parse_stage(reference.op);
  Step step = reference;
  std::string_view rest = text;
  if (const std::size_t colon = rest.find(':'); colon != std::string_view::npos) {
    step.variant = rest.substr(0, colon);
    rest.remove_prefix(colon + 1);
  }
  const Variant& variant = find_variant(step.variant);
  step.point = variant.space(gpu, problem, stage, default_fp8_mode(problem.dtype)).reference();
  for (;;) {
    const std::size_t comma = rest.find(',');
    set_value(step.point, rest.substr(0, comma), step.op, text);
    if (comma == std::string_view::npos) break;
    rest.remove_prefix(comma + 1);
  }
  if (const std::string defect = defect_of(step, gpu, problem); !defect.empty())
    throw bad_point(step.op, text, defect);
  return step;
}

bool same_layer(const TableIdentity& identity, const Problem& problem) {
  LayerShape named = problem.shape;
  named.model = identity.shape.model;  // only a label
  return identity.shape == named && identity.dtype == problem.dtype;
}

Table load_table(const std::string& path, const Gpu& gpu, const Problem& problem) {
  Table table = read_table(path);
  const TableIdentity& identity = table.identity;
  if (identity.gpu != gpu.name) {
    throw Error(ErrorKind::input, fmt::format("{} is a table of {}, this is {}; tune on this GPU",
                                              path, identity.gpu, gpu.name));
  }
  if (!same_layer(identity, problem)) {
    const LayerShape& s = identity.shape;
    throw Error(ErrorKind::input,
                fmt::format("{} is a table of another layer: E={}, K={}, H={}, I={}, {}; choose "
                            "--model, --tp, --ep and --dtype to match",
                            path, s.num_experts, s.top_k, s.hidden_size, s.intermediate_size,
                            to_string(identity.dtype)));
  }
  const Expectation expectation{gpu, nvrtc_version(), kernel_hashes(), {}};
  const TableReport report = check_table(path, table, expectation);
  const auto is_identity = [](const Finding& finding) { return finding.check == Check::identity; };
  for (const Finding& finding : report.findings)
    if (is_identity(finding)) spdlog::warn("{}: {}", path, finding.message);
  std::vector<std::int64_t> stale;
  for (const EntryReport& entry : report.entries)
    if (std::any_of(entry.findings.begin(), entry.findings.end(), is_identity))
      stale.push_back(entry.num_tokens);
  if (!stale.empty()) {
    spdlog::warn(
        "{}: kernels of the entries for {} tokens have changed since; search again with "
        "--tokens {}",
        path, fmt::join(stale, ", "), fmt::join(stale, ","));
  }
  return table;
}

std::optional<Table> find_table(const PlanOptions& options, const Gpu& gpu,
                                const Problem& problem) {
  if (!options.table.empty()) return load_table(options.table, gpu, problem);
  TableIdentity identity;
  identity.gpu = gpu.name;
  identity.shape = problem.shape;
  identity.dtype = problem.dtype;
  const std::filesystem::path path =
      std::filesystem::path(options.tables_dir) / file_name(gpu) / table_file_name(identity);
  std::error_code ignored;
  if (std::filesystem::exists(path, ignored)) return load_table(path.string(), gpu, problem);
  spdlog::warn("no table {}: the reference point is used; `moe-tune search` makes one",
               path.string());
  return std::nullopt;
}

ChosenPlan look_up_plan(const std::optional<Table>& table, const Gpu& gpu, const Problem& problem,
                        std::int64_t num_tokens) {
  const Lookup found = table ? look_up(*table, num_tokens) : Lookup{};
  if (found.step == LookupStep::fallback)
    return {num_tokens, reference_plan(gpu, problem), "fallback", ""};
  return {num_tokens, found.entry->plan,
          found.step == LookupStep::exact ? "exact" : fmt::format("nearest {}", found.num_tokens),
          defect_of(found.entry->plan, gpu, problem)};
}

}  // namespace

std::vector<ChosenPlan> choose_plans(const PlanOptions& options, const Gpu& gpu,
                                     const Problem& problem,
                                     std::span<const std::int64_t> token_counts) {
  const Plan reference = reference_plan(gpu, problem);
  std::optional<Plan> fixed;
  if (options.reference) fixed = reference;
  if (!options.gemm1.empty()) {
    fixed = Plan{{parse_step(options.gemm1, *reference.find("gemm1"), gpu, problem),
                  parse_step(options.gemm2, *reference.find("gemm2"), gpu, problem)}};
  }
  const auto table = fixed ? std::nullopt : find_table(options, gpu, problem);
  std::vector<ChosenPlan> plans;
  for (const std::int64_t num_tokens : token_counts) {
    plans.push_back(
        fixed ? ChosenPlan{num_tokens, *fixed, options.reference ? "reference" : "given", ""}
              : look_up_plan(table, gpu, problem, num_tokens));
  }
  return plans;
}

}  // namespace moetune
