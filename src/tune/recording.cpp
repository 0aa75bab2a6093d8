#include "tune/recording.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <map>
#include <set>
#include <utility>

#include "core/error.hpp"
#include "kernels/variant.hpp"
#include "report/summary.hpp"
#include "tune/journal.hpp"

namespace moetune {
namespace {

using Json = nlohmann::ordered_json;

Problem problem_of(const Json& identity, const std::string& path) {
  try {
    Problem problem;
    problem.shape = {
        identity.at("model").get<std::string>(), identity.at("num_experts").get<std::int64_t>(),
        identity.at("top_k").get<std::int64_t>(), identity.at("hidden_size").get<std::int64_t>(),
        identity.at("intermediate_size").get<std::int64_t>()};
    problem.dtype = parse_dtype(identity.at("dtype").get<std::string>());
    problem.routing = parse_routing(identity.at("routing").get<std::string>());
    return problem;
  } catch (const nlohmann::json::exception& error) {
    throw Error(ErrorKind::input, fmt::format("{}:1: {}", path, error.what()));
  }
}

// Latest look of each plan: a resumed or joined journal may hold several.
using Looks = std::map<std::string, const Trial*>;
using Key = std::pair<Stage, std::int64_t>;

// Every value that the looks of a stage hold for a variant's parameters, ascending.
std::vector<Parameter> parameters_of(const std::map<Key, Looks>& looks, Stage stage,
                                     const std::string& variant) {
  std::vector<Parameter> parameters;
  std::map<std::string, std::set<int>> values;
  for (const auto& [key, of_key] : looks) {
    if (key.first != stage) continue;
    for (const auto& [plan, trial] : of_key) {
      const Step& step = trial->plan.steps.front();
      if (step.variant != variant) continue;
      for (const auto& [name, value] : step.point.values()) {
        if (!values.contains(name)) parameters.push_back({name, {}, value, ""});
        values[name].insert(value);
      }
    }
  }
  for (Parameter& parameter : parameters) {
    const std::set<int>& of = values.at(parameter.name);
    parameter.values.assign(of.begin(), of.end());
  }
  return parameters;
}

// The analytic model of a journal's GPU and kernels; 1 us where this program knows them no more.
class Model {
 public:
  Model(Recording& recording, const Problem& problem) : recording_(recording), problem_(problem) {
    try {
      gpu_ = known_gpu(recording.identity.value("gpu", ""));
    } catch (const Error& error) {
      recording.warnings.push_back(
          fmt::format("{}: no predictions: {}", recording.path, error.what()));
    }
  }

  double predict_us(Stage stage, std::int64_t num_tokens, const Step& step) {
    if (!gpu_) return 1;
    Problem problem = problem_;
    problem.num_tokens = num_tokens;
    try {
      return find_variant(step.variant).predict_us(*gpu_, problem, stage, step.point);
    } catch (const Error& error) {
      if (warned_.insert(step.variant).second) {
        recording_.warnings.push_back(fmt::format("{}: no predictions for {}: {}", recording_.path,
                                                  step.variant, error.what()));
      }
      return 1;
    }
  }

 private:
  Recording& recording_;
  Problem problem_;
  std::optional<Gpu> gpu_;
  std::set<std::string> warned_;
};

RecordedEntry make_entry(const std::map<Key, Looks>& looks, const Key& key, Model& model) {
  RecordedEntry entry;
  entry.stage = key.first;
  entry.num_tokens = key.second;
  entry.best_us = std::numeric_limits<double>::infinity();
  std::map<std::string, std::size_t> by_variant;
  for (const auto& [plan, trial] : looks.at(key)) {
    const Step& step = trial->plan.steps.front();
    const auto [known, is_new] = by_variant.try_emplace(step.variant, entry.spaces.size());
    if (is_new) {
      entry.spaces.emplace_back().variant = step.variant;
      entry.spaces.back().space.parameters = parameters_of(looks, entry.stage, step.variant);
    }
    RecordedSpace& space = entry.spaces[known->second];
    if (step.point.values().size() != space.space.parameters.size()) continue;  // another version's
    space.points.push_back(step.point);
    space.looks.push_back(*trial);
    space.predicted_us.push_back(model.predict_us(entry.stage, entry.num_tokens, step));
    if (has_good_time(*trial)) entry.best_us = std::min(entry.best_us, trial->timing.median_us);
  }
  for (RecordedSpace& space : entry.spaces) {
    entry.coordinates.emplace_back(space.space, space.points);
    space.space.constraints = {
        {"recorded", [of = entry.coordinates.back()](const Point& p) -> std::optional<std::string> {
           if (of.find(p)) return {};
           return "nobody looked at it";
         }}};
  }
  return entry;
}

}  // namespace

std::uint64_t RecordedEntry::num_points() const {
  std::uint64_t sum = 0;
  for (const RecordedSpace& space : spaces) sum += space.points.size();
  return sum;
}

Recording read_recording(const std::string& path) {
  JournalContents journal = read_journal(path);
  if (journal.header.is_null()) {
    throw Error(ErrorKind::input, fmt::format("{}: an empty journal", path));
  }
  Recording recording{path, journal.header.at("identity"), {}, std::move(journal.warnings)};
  const Problem problem = problem_of(recording.identity, path);
  std::map<Key, Looks> looks;
  for (const JournalTrial& known : journal.trials) {
    const Trial& trial = known.trial;
    if (known.round != 0 || trial.plan.steps.size() != 1) continue;
    looks[{trial.stage, trial.num_tokens}][trial.plan.key()] = &trial;
  }
  Model model(recording, problem);
  const Plan reference = reference_plan({}, problem);
  for (const auto& [key, of_key] : looks) {
    RecordedEntry entry = make_entry(looks, key, model);
    if (!std::isfinite(entry.best_us)) continue;
    if (const Step* step = reference.find(to_string(entry.stage))) entry.reference = *step;
    recording.entries.push_back(std::move(entry));
  }
  if (recording.entries.empty()) {
    throw Error(ErrorKind::input,
                fmt::format("{}: no first look at any point; record one with `moe-tune search "
                            "--grid`",
                            path));
  }
  return recording;
}

}  // namespace moetune
