// What a search writes to its journal besides trials.
#pragma once

#include <nlohmann/json.hpp>
#include <span>
#include <string>

#include "core/trial.hpp"
#include "tune/finals.hpp"
#include "tune/proposals.hpp"
#include "tune/session.hpp"

namespace moetune {

// What a journal must agree on to be resumed: everything that its times depend on.
nlohmann::ordered_json journal_identity(const TableIdentity& identity, const Problem& problem,
                                        const SearchSettings& settings);

// One (token count, stage): points rejected by rule, how many trials, the finalists with the
// winner first.
nlohmann::ordered_json stage_record(const Proposals& proposals, std::span<const Trial> finals,
                                    std::size_t num_trials);
nlohmann::ordered_json entry_record(std::int64_t num_tokens, const TableEntry& entry,
                                    const TimeInterval& interval);
// What a run took: seconds, how busy the GPU was (of several: on average), peak host memory of all
// its processes, samples discarded and whether there was a clock check. `clock_check` is null when
// nothing was measured thoroughly.
nlohmann::ordered_json run_figures(const SearchResult& result);
// The same in two lines for people. `offline`: it was the compiler that was busy.
std::string run_text(const SearchResult& result, bool offline);
// What a run came to: its figures, trials by status, points by rejecting rule.
nlohmann::ordered_json run_record(const SearchResult& result);

}  // namespace moetune
