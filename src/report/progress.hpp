// What a person sees while a search runs, on stderr: a live line on a terminal, else plain lines
// now and then, or nothing.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <ostream>
#include <string>
#include <utility>

#include "core/trial.hpp"

namespace moetune {

enum class ProgressMode { off, plain, live };

// off when `quiet`, live when stderr is a terminal, else plain.
ProgressMode progress_mode(bool quiet);

// A best time of 0 means none yet; a negative seconds_left means unknown.
struct ProgressState {
  std::string label;           // "gemm1, 64 tokens"
  std::uint64_t num_done = 0;  // trials ended, over the whole run
  std::uint64_t num_expected = 0;
  std::uint64_t num_rejected = 0;  // by a rule before compilation, or by a kernel's resources
  std::uint64_t num_failed = 0;    // did not compile, launch, end in time or give the right result
  double best_us = 0;              // for the label's stage and token count
  Source best_source = Source::measured;
  double seconds_left = -1;
};

// "gemm1, 64 tokens: 312/1200 (26%), 40 rejected, 2 failed, best 83.2 us, 1m20s left".
std::string progress_line(const ProgressState& state);
// "45s", "1m20s", "2h05m".
std::string duration_text(double seconds);

class Progress {
 public:
  using Clock = std::function<std::chrono::steady_clock::time_point()>;

  // `num_expected`: trials of the whole run, all stages and token counts; see expect().
  Progress(ProgressMode mode, std::ostream& out, std::uint64_t num_expected = 0,
           Clock now = std::chrono::steady_clock::now);
  ~Progress();  // finish()
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // What is being worked on now. Stages and token counts may alternate: bests are kept for each.
  void begin(Stage stage, std::int64_t num_tokens);
  void expect(std::uint64_t num_expected);      // corrects the total
  void add_rejected(std::uint64_t num_points);  // never became trials: not part of the total
  void update(const Trial& trial,
              bool resumed = false);  // resumed: known from the journal, cost no time
  void clear();   // takes the live line away so that something else can be printed
  void finish();  // a last line; nothing is drawn afterwards

  const ProgressState& state() const { return state_; }

 private:
  void show_best();
  void draw(bool last);

  ProgressMode mode_;
  std::ostream& out_;
  Clock now_;
  ProgressState state_;
  std::pair<Stage, std::int64_t> current_{};
  std::map<std::pair<Stage, std::int64_t>, std::pair<double, Source>> best_;
  std::uint64_t num_resumed_ = 0;
  std::chrono::steady_clock::time_point started_;
  std::chrono::steady_clock::time_point drawn_;
  bool finished_ = false;
};

}  // namespace moetune
