// What a search's journal says, gathered for its report. Pure functions.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core/gpu.hpp"
#include "core/objective.hpp"
#include "core/trial.hpp"
#include "search/legal_points.hpp"
#include "table/table.hpp"

namespace moetune {

struct TimedTrial {
  Trial trial;
  double elapsed_s = 0;  // since the search began
};

// A journal's contents; the journal itself belongs to a later module.
struct SearchRecord {
  nlohmann::ordered_json header;
  std::vector<TimedTrial> trials;
  std::vector<nlohmann::ordered_json> others;  // stage, entry, resume and run records
};

// A layer at one token count, beside what the GPU's rates allow.
struct LayerPoint {
  TableEntry entry;
  double bytes = 0;       // that must move
  double flops = 0;       // of one call
  double floor_us = 0;    // the larger of both at the GPU's rates; 0 when those are unknown
  bool is_tie = false;    // another plan was within noise
  bool has_rest = false;  // rel_err, p10 and p90 are known: the entry is a table's
};

struct ReportData {
  TableIdentity identity;
  Routing routing;
  std::string created;
  std::string command;
  std::string strategy;
  double read_gbps = 0;  // 0 when unknown
  double tflops = 0;
  std::map<std::int64_t, LayerPoint> layers;
  std::vector<TimedTrial> trials;
  std::map<std::string, std::uint64_t> rejected;  // points, by rule
  std::map<TrialStatus, RejectedRule> failed;     // trials neither ok nor rejected
  std::uint64_t num_trials = 0;                   // of the search; the journal may hold fewer
  double wall_s = 0;                              // 0 when no run ended
  double busy_s = 0;
  bool complete = false;
  std::pair<Objective, Objective> pareto{Objective::time, Objective::error};  // what to set off
  std::set<Source> sources() const;                                           // of the layers
};

// Entries come from `table` when given, else from the journal. Throws Error(input) when the header
// lacks what a journal's has, or the table is of another GPU, shape, dtype, routing or kernels.
ReportData gather(const SearchRecord& record, const std::optional<Table>& table);

// "measured", or "recorded, predicted": the sources' names.
std::string source_names(const std::set<Source>& sources);

}  // namespace moetune
