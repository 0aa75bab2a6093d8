#include "report/progress.hpp"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <tuple>

#include "report/summary.hpp"

namespace moetune {
namespace {

using std::chrono::milliseconds;
constexpr milliseconds kLiveInterval{100};
constexpr milliseconds kPlainInterval{5000};

std::size_t terminal_columns() {
  winsize size{};
  const bool known = ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  return known ? size.ws_col : 80;
}

}  // namespace

ProgressMode progress_mode(bool quiet) {
  if (quiet) return ProgressMode::off;
  return isatty(STDERR_FILENO) != 0 ? ProgressMode::live : ProgressMode::plain;
}

std::string duration_text(double seconds) {
  const auto whole = static_cast<std::int64_t>(std::ceil(seconds));
  if (whole < 60) return fmt::format("{}s", whole);
  if (whole < 3600) return fmt::format("{}m{:02}s", whole / 60, whole % 60);
  return fmt::format("{}h{:02}m", whole / 3600, whole / 60 % 60);
}

std::string progress_line(const ProgressState& state) {
  std::string line;
  if (!state.label.empty()) line += state.label + ": ";
  line += fmt::format("{}", state.num_done);
  if (state.num_expected > 0 && state.num_expected >= state.num_done) {
    line += fmt::format("/{} ({}%)", state.num_expected, 100 * state.num_done / state.num_expected);
  }
  line += fmt::format(" done, {} rejected, {} failed", state.num_rejected, state.num_failed);
  if (state.best_us > 0) line += ", best " + time_text(state.best_us, state.best_source, " us");
  if (state.seconds_left >= 0) line += ", " + duration_text(state.seconds_left) + " left";
  return line;
}

Progress::Progress(ProgressMode mode, std::ostream& out, std::uint64_t num_expected, Clock now)
    : mode_(mode), out_(out), now_(std::move(now)), started_(now_()), drawn_(started_) {
  state_.num_expected = num_expected;
}

Progress::~Progress() {
  finish();
}

void Progress::begin(Stage stage, std::int64_t num_tokens) {
  current_ = {stage, num_tokens};
  state_.label =
      fmt::format("{}, {} token{}", to_string(stage), num_tokens, num_tokens == 1 ? "" : "s");
  show_best();
  draw(false);
}

void Progress::expect(std::uint64_t num_expected) {
  state_.num_expected = num_expected;
}

void Progress::add_rejected(std::uint64_t num_points) {
  state_.num_rejected += num_points;
}

void Progress::update(const Trial& trial, bool resumed) {
  ++state_.num_done;
  if (resumed) ++num_resumed_;
  if (trial.status == TrialStatus::rejected) ++state_.num_rejected;
  if (trial.status != TrialStatus::ok && trial.status != TrialStatus::rejected) ++state_.num_failed;
  const double time_us = trial.timing.median_us;
  if (has_good_time(trial)) {
    auto& best = best_[{trial.stage, trial.num_tokens}];
    if (best.first == 0 || time_us < best.first) best = {time_us, trial.source};
  }
  show_best();
  // The rate of this run's own trials: those from the journal took no time.
  const std::uint64_t num_own = state_.num_done - num_resumed_;
  state_.seconds_left = -1;
  if (num_own > 0 && state_.num_expected >= state_.num_done) {
    const double elapsed_s = std::chrono::duration<double>(now_() - started_).count();
    state_.seconds_left = elapsed_s / static_cast<double>(num_own) *
                          static_cast<double>(state_.num_expected - state_.num_done);
  }
  draw(false);
}

void Progress::clear() {
  if (mode_ == ProgressMode::live && !finished_) out_ << "\r\x1b[K" << std::flush;
}

void Progress::finish() {
  if (finished_) return;
  state_.seconds_left = -1;
  if (state_.num_done > 0) draw(true);
  finished_ = true;
}

void Progress::show_best() {
  const auto found = best_.find(current_);
  if (found == best_.end()) {
    state_.best_us = 0;
  } else {
    std::tie(state_.best_us, state_.best_source) = found->second;
  }
}

void Progress::draw(bool last) {
  if (mode_ == ProgressMode::off || finished_) return;
  const auto now = now_();
  const bool live = mode_ == ProgressMode::live;
  if (!last && now - drawn_ < (live ? kLiveInterval : kPlainInterval)) return;
  drawn_ = now;
  std::string line = progress_line(state_);
  if (!live) {
    out_ << line << std::endl;
    return;
  }
  // A wrapped line could not be taken back, so it is cut; the last one stays and may wrap.
  if (!last) line.resize(std::min(line.size(), terminal_columns() - 1));
  out_ << '\r' << line << "\x1b[K" << (last ? "\n" : "") << std::flush;
}

}  // namespace moetune
