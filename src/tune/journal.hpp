// The journal of a search: append-only JSON lines, a record a trial, so that a kill loses at most
// what is in flight or measured ahead and the same command goes on where it stopped.
//
//   {"record": "header", "version": 1, "identity": {...}, "created": ..., "command": ...}
//   {"record": "trial", "round": 0, "elapsed_s": 1.25, <the fields of Trial>}
//   {"record": "stage", ...}   rejected points by rule, once a (token count, stage)
//   {"record": "entry", ...}   a chosen table entry
//   {"record": "resume", ...}  another run goes on from here
//   {"record": "run", ...}     what a run came to
#pragma once

#include <chrono>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/trial.hpp"

namespace moetune {

inline constexpr int kJournalVersion = 1;

struct JournalTrial {
  Trial trial;
  int round = 0;         // 0: the screening look; 1, 2, ...: measured again among the finalists
  double elapsed_s = 0;  // since the search began, earlier runs included
};

nlohmann::ordered_json to_record(const JournalTrial& trial);

struct JournalContents {
  nlohmann::ordered_json header;  // null when the file has no complete line
  std::vector<JournalTrial> trials;
  std::vector<nlohmann::ordered_json> others;  // stage, entry, resume and run records, in order
  std::vector<std::string> warnings;           // "PATH:LINE: ..." for every line that was skipped
  std::uint64_t good_bytes = 0;  // where appending may go on: a torn last line is beyond it
};

// Throws Error(input) when the file cannot be read or its first line is not a journal's header of
// this version. A header from before table version 4 is brought to its present form, see
// table/older.hpp. PATH.gz is read as gzip. Bad lines are skipped and named in `warnings`.
JournalContents read_journal(const std::string& path);

class Journal {
 public:
  // Creates the file and its folders and writes the header. A journal already there is renamed to
  // PATH.bak-N, or with `resume` continued: its header's identity must equal `identity`, else
  // Error(input) names the first difference and the remedy. A torn last line is cut off. Throws
  // Error(io) when the file cannot be written or another process is writing it.
  Journal(std::string path, const nlohmann::ordered_json& identity, const std::string& command,
          bool resume);
  ~Journal();

  // Appends with one write(2), so that a record is there whole or not at all; reaches the disk
  // within about a second. Throws Error(io), having taken back what was written of the line.
  void append(const nlohmann::ordered_json& record);
  void append(const JournalTrial& trial);
  void sync();

  const std::string& path() const { return path_; }
  std::vector<JournalTrial> take_known() { return std::move(known_); }  // trials of earlier runs
  // What the user should know: a renamed journal, skipped lines.
  const std::vector<std::string>& notes() const { return notes_; }

 private:
  struct File {
    int fd = -1;
    File() = default;
    File(const File&) = delete;
    File& operator=(const File&) = delete;
    ~File() { close(); }
    void close();
  };

  void open(bool truncate);
  void recover(const nlohmann::ordered_json& identity);

  std::string path_;
  File file_;
  std::chrono::steady_clock::time_point synced_;
  std::vector<JournalTrial> known_;
  std::vector<std::string> notes_;
};

}  // namespace moetune
