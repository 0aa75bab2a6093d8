#include "tune/t4.hpp"

#include <string_view>

namespace moetune {
namespace {

using Json = nlohmann::ordered_json;

std::string_view invalidity(TrialStatus status) {
  switch (status) {
    case TrialStatus::ok:
      return "correct";
    case TrialStatus::rejected:
      return "constraints";
    case TrialStatus::compile_failed:
      return "compile";
    case TrialStatus::launch_failed:
      return "runtime";
    case TrialStatus::wrong_result:
      return "correctness";
    case TrialStatus::timed_out:
      return "timeout";
  }
  return "runtime";
}

Json measurement(std::string_view name, double value, std::string_view unit) {
  return {{"name", name}, {"value", value}, {"unit", unit}};
}

Json result(const Trial& trial) {
  Json configuration{{"stage", to_string(trial.stage)},
                     {"num_tokens", trial.num_tokens},
                     {"variant", trial.plan.steps.front().variant}};
  for (const auto& [name, value] : trial.plan.steps.front().point.values())
    configuration[name] = value;
  const bool is_timed = trial.status == TrialStatus::ok;
  Json json{{"configuration", configuration},
            {"objectives", {"time"}},
            {"times", {{"compilation_time", trial.compile_ms}}},
            {"invalidity", invalidity(trial.status)},
            {"correctness", is_timed ? 1 : 0},
            {"measurements", Json::array()}};
  if (!is_timed) return json;
  const Timing& timing = trial.timing;
  // The samples themselves are not kept: the median stands for them.
  json["times"]["runtimes"] = {timing.median_us / 1e3};
  json["measurements"] = {measurement("time", timing.median_us / 1e3, "ms"),
                          measurement("time_p10", timing.p10_us / 1e3, "ms"),
                          measurement("time_p90", timing.p90_us / 1e3, "ms"),
                          measurement("num_samples", timing.num_samples, ""),
                          measurement("screened_out", trial.screened_out ? 1 : 0, ""),
                          measurement("relative_error", trial.rel_err, ""),
                          measurement("registers", trial.registers, ""),
                          measurement("shared_memory", trial.smem_bytes, "B")};
  return json;
}

}  // namespace

Json t4_json(const JournalContents& journal) {
  Json results = Json::array();
  for (const JournalTrial& known : journal.trials) {
    if (known.round == 0 && known.trial.plan.steps.size() == 1)
      results.push_back(result(known.trial));
  }
  return {{"schema_version", "1.0.0"},
          {"results", results},
          {"moe_tune", journal.header.value("identity", Json::object())}};
}

}  // namespace moetune
