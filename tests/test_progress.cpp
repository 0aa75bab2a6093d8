#include <doctest/doctest.h>

#include <limits>
#include <sstream>

#include "report/progress.hpp"

using namespace moetune;
using std::chrono::seconds;

namespace {

Trial trial(TrialStatus status, double median_us = 0, Source source = Source::measured) {
  Trial trial;
  trial.stage = Stage::gemm1;
  trial.num_tokens = 64;
  trial.status = status;
  trial.timing.median_us = median_us;
  trial.source = source;
  return trial;
}

struct FakeClock {
  std::chrono::steady_clock::time_point now{};
  Progress::Clock clock() {
    return [this] { return now; };
  }
};

}  // namespace

TEST_CASE("progress line: everything that is known, and nothing that is not") {
  ProgressState state;
  CHECK(progress_line(state) == "0 done, 0 rejected, 0 failed");
  state = {.label = "gemm1, 64 tokens",
           .num_done = 312,
           .num_expected = 1200,
           .num_rejected = 40,
           .num_failed = 2,
           .best_us = 83.21,
           .best_source = Source::predicted,
           .seconds_left = 80};
  CHECK(progress_line(state) ==
        "gemm1, 64 tokens: 312/1200 (26%) done, 40 rejected, 2 failed, best 83.2 us predicted, "
        "1m20s left");
  state.num_expected = 300;  // the estimate fell short
  CHECK(progress_line(state).starts_with("gemm1, 64 tokens: 312 done"));
}

TEST_CASE("duration text: seconds, minutes, hours") {
  CHECK(duration_text(0) == "0s");
  CHECK(duration_text(44.2) == "45s");
  CHECK(duration_text(80) == "1m20s");
  CHECK(duration_text(7500) == "2h05m");
}

TEST_CASE("progress: counts statuses and keeps the best of each stage and token count") {
  std::ostringstream out;
  Progress progress(ProgressMode::off, out, 10);
  progress.add_rejected(5);
  progress.begin(Stage::gemm1, 64);
  progress.update(trial(TrialStatus::ok, 12));
  progress.update(trial(TrialStatus::ok, 10, Source::recorded));
  progress.update(trial(TrialStatus::ok, std::numeric_limits<double>::quiet_NaN()));
  progress.update(trial(TrialStatus::rejected));
  progress.update(trial(TrialStatus::wrong_result, 1));
  progress.update(trial(TrialStatus::timed_out));
  CHECK(progress.state().num_done == 6);
  CHECK(progress.state().num_rejected == 6);
  CHECK(progress.state().num_failed == 2);
  CHECK(progress.state().best_us == 10);
  CHECK(progress.state().best_source == Source::recorded);
  progress.begin(Stage::gemm2, 1);
  CHECK(progress.state().label == "gemm2, 1 token");
  CHECK(progress.state().best_us == 0);
  progress.begin(Stage::gemm1, 64);
  CHECK(progress.state().best_us == 10);
  progress.finish();
  CHECK(out.str().empty());
}

TEST_CASE("progress: time left comes from this run's trials, not from the journal's") {
  FakeClock time;
  std::ostringstream out;
  Progress progress(ProgressMode::off, out, 100, time.clock());
  for (int i = 0; i < 50; ++i) progress.update(trial(TrialStatus::ok, 5), true);
  CHECK(progress.state().seconds_left < 0);
  time.now += seconds(20);
  for (int i = 0; i < 10; ++i) progress.update(trial(TrialStatus::ok, 5));
  CHECK(progress.state().seconds_left == doctest::Approx(80));  // 40 left at 2 s each
  progress.expect(65);
  progress.update(trial(TrialStatus::ok, 5));
  CHECK(progress.state().seconds_left == doctest::Approx(20.0 / 11 * 4));
}

TEST_CASE("progress: plain lines come at most every few seconds, and one at the end") {
  FakeClock time;
  std::ostringstream out;
  Progress progress(ProgressMode::plain, out, 3, time.clock());
  progress.begin(Stage::gemm1, 64);
  progress.update(trial(TrialStatus::ok, 5));
  CHECK(out.str().empty());
  time.now += seconds(6);
  progress.update(trial(TrialStatus::ok, 4));
  progress.update(trial(TrialStatus::ok, 3));
  progress.finish();
  progress.finish();
  progress.update(trial(TrialStatus::ok, 2));
  CHECK(out.str() ==
        "gemm1, 64 tokens: 2/3 (66%) done, 0 rejected, 0 failed, best 4.0 us, 3s left\n"
        "gemm1, 64 tokens: 3/3 (100%) done, 0 rejected, 0 failed, best 3.0 us\n");
}

TEST_CASE("progress: a terminal gets one line that is rewritten and cleared") {
  FakeClock time;
  std::ostringstream out;
  {
    Progress progress(ProgressMode::live, out, 2, time.clock());
    time.now += seconds(1);
    progress.update(trial(TrialStatus::ok, 5));
    CHECK(out.str() == "\r1/2 (50%) done, 0 rejected, 0 failed, 1s left\x1b[K");
    out.str("");
    progress.clear();
    CHECK(out.str() == "\r\x1b[K");
    out.str("");
    progress.update(trial(TrialStatus::ok, 5));  // too soon to draw again
    CHECK(out.str().empty());
  }
  CHECK(out.str() == "\r2/2 (100%) done, 0 rejected, 0 failed\x1b[K\n");
}

TEST_CASE("progress: a run that never tried anything prints nothing") {
  std::ostringstream out;
  { Progress progress(ProgressMode::plain, out); }
  CHECK(out.str().empty());
}

TEST_CASE("progress mode: quiet wins") {
  CHECK(progress_mode(true) == ProgressMode::off);
}
