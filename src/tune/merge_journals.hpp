// Joining journals of the same identity, such as those of shards that searched apart.
#pragma once

#include <span>
#include <string>

#include "tune/journal.hpp"

namespace moetune {

// A journal read from `path`, which errors name.
struct NamedJournal {
  std::string path;
  JournalContents contents;
};

struct MergedJournal {
  std::string text;  // the whole file
  std::size_t num_trials = 0;
  std::size_t num_conflicts = 0;  // trials that were in several journals and differed
};

// The same whatever the journals' order, and merging the result again changes nothing. Records
// follow token count, stage, round and time. Of a trial that several have one stays: a wrong result
// before a good one, for it casts doubt on the other; a good one before a failure; measured before
// recorded before predicted; a whole look before a brief one; more samples; then the faster. Throws
// Error(input) when identities differ, naming the files and the first difference.
MergedJournal merge_journals(std::span<const NamedJournal> journals);

}  // namespace moetune
