// A search from its settings to its table.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "core/problem.hpp"
#include "report/sensitivity.hpp"
#include "table/table.hpp"
#include "tune/evaluator.hpp"
#include "tune/journal.hpp"
#include "tune/proposals.hpp"
#include "tune/runner.hpp"

namespace moetune {

struct SearchResult {
  Table table;             // this search's entries
  std::string table_path;  // empty when no entry was found
  std::vector<Trial> trials;
  std::map<std::string, RejectedRule> rejected;  // by constraints, summed over the spaces
  std::vector<Sensitivity> sensitivities;        // ablation: one a stage and token count
  std::vector<std::int64_t> missing;             // token counts at which nothing worked
  bool interrupted = false;
  std::uint64_t num_resumed = 0;  // trials taken from the journal
  double wall_s = 0;              // of this run
  Usage usage;                    // of this run; peak memory: of all its processes
};

// Tunes each token count, small to large: gemm1, then gemm2 (they do not constrain each other),
// then whole layers made of the best few of each, beside the reference point's layer. The layer's
// time decides; the reference stays where nothing beats it by more than noise. After each token
// count the table in `table_dir` is written, with what is still missing. `stop` is asked before
// each trial: true ends the search with what is known. Throws Error for I/O and a lost device;
// journal and table then hold everything up to the trial before.
SearchResult search(Evaluator& evaluator, const Problem& problem, const SearchSettings& settings,
                    Table table, const std::string& table_dir, Journal& journal,
                    const std::function<bool()>& stop, SearchListener& listener);

}  // namespace moetune
