// Whether a table may be used here: what can be told from its text, and what a GPU says about it.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/error.hpp"
#include "core/gpu.hpp"
#include "core/trial.hpp"
#include "table/table.hpp"

namespace moetune {

class Evaluator;

//   identity     GPU, architecture, compiler, shape and, for an entry, the sources of its plan's
//                variants are those expected here
//   coverage     every wanted token count has an entry, and the search was not interrupted
//   legality     the kernels exist, run on the GPU, and the points break no rule of theirs
//   provenance   the times are measurements, and agree with each other
//   correctness  the output equals the reference's (on a GPU)
//   speed        no slower than recorded, or than the reference point (on a GPU)
enum class Check { identity, coverage, legality, provenance, correctness, speed };
std::string_view to_string(Check check);

struct Finding {
  Check check = Check::identity;
  std::string message;
  bool fails = true;  // false: worth knowing, no defect
};

struct EntryReport {
  std::int64_t num_tokens = 0;
  TableEntry entry;
  std::vector<Finding> findings;
  std::optional<Trial> trial;            // the entry's plan, timed again
  std::optional<Trial> reference_trial;  // the reference point, timed beside it
  bool good() const;
};

struct TableReport {
  std::string path;
  TableIdentity identity;
  std::vector<Finding> findings;  // about the table as a whole
  std::vector<EntryReport> entries;
  bool checked_on_device = false;  // every legal entry was; correctness and speed say so
  // Why the file is no table (ErrorKind::input), or why the GPU could not check it.
  std::optional<Error> error;
  bool good() const;
};

// What a table is compared with.
struct Expectation {
  std::optional<Gpu> gpu;  // nothing: any GPU will do, its limits come from the table's name of it
  std::string nvrtc;       // empty: not compared
  KernelHashes kernels;    // of this program
  std::vector<std::int64_t> token_counts;  // that must have entries
};

// Never throws for what the table does wrong.
TableReport check_table(const std::string& path, const Table& table,
                        const Expectation& expectation);

// The problem whose largest token count is the table's; what an evaluator is made for.
Problem largest_problem(const Table& table);

// Runs every legal entry and the reference point beside it. A regression is a median more than
// `max_regression_pct` above the recorded one, or slower than the reference point beyond noise:
// each median outside the other's 10th to 90th percentile. It counts when it shows twice. When the
// evaluator throws, report.error holds why, and what was found until then stays.
// `on_entry` is called before each entry, for progress.
void check_on_device(TableReport& report, const Table& table, Evaluator& evaluator,
                     double max_regression_pct,
                     const std::function<void(const EntryReport&)>& on_entry = {});

}  // namespace moetune
