#include "core/trial.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <limits>

#include "core/error.hpp"

namespace moetune {
namespace {

using Json = nlohmann::ordered_json;

// In the order of the enumerators.
constexpr std::array<std::string_view, 3> kStages = {"gemm1", "gemm2", "layer"};
constexpr std::array<std::string_view, 6> kStatuses = {
    "ok", "rejected", "compile_failed", "launch_failed", "wrong_result", "timed_out"};
constexpr std::array<std::string_view, 3> kSources = {"measured", "recorded", "predicted"};

template <class Enum, std::size_t N>
Enum parse(std::string_view what, std::string_view text,
           const std::array<std::string_view, N>& names) {
  for (std::size_t i = 0; i < N; ++i)
    if (names[i] == text) return static_cast<Enum>(i);
  throw Error(ErrorKind::input,
              fmt::format("unknown {} '{}'; known are {}", what, text, fmt::join(names, ", ")));
}

const Json& field(const Json& json, const char* name) {
  if (!json.is_object() || !json.contains(name))
    throw Error(ErrorKind::input, fmt::format("'{}' is missing", name));
  return json.at(name);
}

template <class T>
T read(const Json& json, const char* name) {
  const Json& value = field(json, name);
  try {
    return value.get<T>();
  } catch (const Json::exception&) {
    throw Error(ErrorKind::input,
                fmt::format("'{}' is of the wrong type: {}", name,
                            value.is_structured() ? value.type_name() : value.dump()));
  }
}

template <class T>
T read_or(const Json& json, const char* name, T fallback) {
  return json.contains(name) ? read<T>(json, name) : fallback;
}

// JSON has no NaN: it is written as null.
double read_error(const Json& json, const char* name) {
  if (!json.contains(name)) return 0;
  if (json.at(name).is_null()) return std::numeric_limits<double>::quiet_NaN();
  return read<double>(json, name);
}

template <class T>
void write_unless_zero(Json& json, const char* name, const T& value) {
  if (value != T{}) json[name] = value;
}

}  // namespace

std::string_view to_string(Stage stage) {
  return kStages.at(static_cast<std::size_t>(stage));
}
std::string_view to_string(TrialStatus status) {
  return kStatuses.at(static_cast<std::size_t>(status));
}
std::string_view to_string(Source source) {
  return kSources.at(static_cast<std::size_t>(source));
}

Stage parse_stage(std::string_view text) {
  return parse<Stage>("stage", text, kStages);
}
TrialStatus parse_status(std::string_view text) {
  return parse<TrialStatus>("status", text, kStatuses);
}
Source parse_source(std::string_view text) {
  return parse<Source>("source", text, kSources);
}

bool is_deterministic(const Point& point) {
  return point.value_or("FUSE_COMBINE", 0) == 0;
}
bool is_deterministic(const Plan& plan) {
  return std::ranges::all_of(plan.steps,
                             [](const Step& step) { return is_deterministic(step.point); });
}

const Step* Plan::find(std::string_view op) const {
  for (const Step& step : steps)
    if (step.op == op) return &step;
  return nullptr;
}

std::string Plan::key() const {
  std::string text;
  for (const Step& step : steps) {
    if (!text.empty()) text += ';';
    text += fmt::format("{}:{}:{}", step.op, step.variant, step.point.key());
  }
  return text;
}

void to_json(Json& json, const Plan& plan) {
  json = Json::array();
  for (const Step& step : plan.steps)
    json.push_back(Json{{"op", step.op}, {"variant", step.variant}, {"point", step.point}});
}

void from_json(const Json& json, Plan& plan) {
  if (!json.is_array())
    throw Error(ErrorKind::input,
                fmt::format("a plan must be an array of steps, not {}", json.type_name()));
  Plan result;
  for (const Json& step : json) {
    result.steps.push_back({read<std::string>(step, "op"), read<std::string>(step, "variant"),
                            read<Point>(step, "point")});
  }
  plan = std::move(result);
}

void to_json(Json& json, const Trial& trial) {
  json = Json{{"stage", to_string(trial.stage)},
              {"num_tokens", trial.num_tokens},
              {"plan", trial.plan},
              {"status", to_string(trial.status)}};
  write_unless_zero(json, "rule", trial.rule);
  write_unless_zero(json, "reason", trial.reason);
  write_unless_zero(json, "rel_err", trial.rel_err);
  write_unless_zero(json, "max_err", trial.max_err);
  write_unless_zero(json, "quantisation_err", trial.quantisation_err);
  write_unless_zero(json, "compile_ms", trial.compile_ms);
  write_unless_zero(json, "registers", trial.registers);
  write_unless_zero(json, "spill_bytes", trial.spill_bytes);
  write_unless_zero(json, "smem_bytes", trial.smem_bytes);
  write_unless_zero(json, "workspace_bytes", trial.workspace_bytes);
  write_unless_zero(json, "energy_mj", trial.energy_mj);
  if (trial.status == TrialStatus::ok) {
    const Timing& timing = trial.timing;
    json["median_us"] = timing.median_us;
    json["p10_us"] = timing.p10_us;
    json["p90_us"] = timing.p90_us;
    json["num_samples"] = timing.num_samples;
    write_unless_zero(json, "num_discarded", timing.num_discarded);
    write_unless_zero(json, "clock_mhz", timing.clock_mhz);
    write_unless_zero(json, "unsteady", timing.unsteady);
  }
  write_unless_zero(json, "screened_out", trial.screened_out);
  json["source"] = to_string(trial.source);
}

void from_json(const Json& json, Trial& trial) {
  Trial result;
  result.stage = parse_stage(read<std::string>(json, "stage"));
  result.num_tokens = read<std::int64_t>(json, "num_tokens");
  result.plan = read<Plan>(json, "plan");
  result.status = parse_status(read<std::string>(json, "status"));
  result.rule = read_or(json, "rule", std::string());
  result.reason = read_or(json, "reason", std::string());
  result.rel_err = read_error(json, "rel_err");
  result.max_err = read_error(json, "max_err");
  result.quantisation_err = read_error(json, "quantisation_err");
  result.compile_ms = read_or(json, "compile_ms", 0.0);
  result.registers = read_or(json, "registers", 0);
  result.spill_bytes = read_or(json, "spill_bytes", 0);
  result.smem_bytes = read_or(json, "smem_bytes", 0);
  result.workspace_bytes = read_or(json, "workspace_bytes", std::int64_t{0});
  result.energy_mj = read_or(json, "energy_mj", 0.0);
  if (result.status == TrialStatus::ok) {
    result.timing = {read<double>(json, "median_us"),   read<double>(json, "p10_us"),
                     read<double>(json, "p90_us"),      read<int>(json, "num_samples"),
                     read_or(json, "num_discarded", 0), read_or(json, "clock_mhz", 0),
                     read_or(json, "unsteady", false)};
  }
  result.screened_out = read_or(json, "screened_out", false);
  result.source = parse_source(read<std::string>(json, "source"));
  trial = std::move(result);
}

}  // namespace moetune
