// Which points a search measures again, and combines into layers.
#include <doctest/doctest.h>

#include "tune/finals.hpp"

using namespace moetune;

namespace {

Trial trial(double median_us, int fp8, int fuse_combine, int warps = 4) {
  Trial trial;
  Point point({{"NUM_WARPS", warps}, {"FP8", fp8}, {"FUSE_COMBINE", fuse_combine}});
  trial.plan = Plan{{{"gemm2", "portable", point}}};
  trial.timing.median_us = median_us;
  return trial;
}

std::vector<double> times(const std::vector<Trial>& trials) {
  std::vector<double> times;
  for (const Trial& trial : trials) times.push_back(trial.timing.median_us);
  return times;
}

}  // namespace

TEST_CASE("pick: the fastest within the band, and the first of each fp8 choice") {
  const std::vector<Trial> trials{trial(100, 1, 0), trial(105, 1, 0, 8),  trial(106, 1, 0, 16),
                                  trial(107, 1, 0), trial(108, 1, 0, 32), trial(120, 1, 0, 2),
                                  trial(300, 0, 0)};
  CHECK(times(pick(trials, 4, 1.1)) == std::vector<double>{100, 105, 106, 107, 300});
  CHECK(times(pick(trials, 9, 1.1)) == std::vector<double>{100, 105, 106, 107, 108, 300});
  CHECK(times(pick(trials, 1, 1.01)) == std::vector<double>{100, 300});
  const std::vector<Trial> settled{trial(101, 1, 0), trial(100.5, 1, 0), trial(100, 1, 0)};
  CHECK(times(pick(settled, 1, 1.0)) == std::vector<double>{101, 100.5, 100});
  CHECK(pick({}, 2, 1.1).empty());
}

TEST_CASE("pick: other variants and ways of the sum too, where a launch less may make up for it") {
  std::vector<Trial> small{trial(8, 1, 0)};
  for (const double us : {9.0, 9.1, 9.2, 9.3, 10.3}) small.push_back(trial(us, 1, 1));
  small.push_back(trial(9.4, 1, 1));
  small.back().plan.steps[0].variant = "swap_ab";
  CHECK(times(pick(small, 1, 1.03)) == std::vector<double>{8, 9, 9.1, 9.2, 9.4});
  const std::vector<Trial> large{trial(300, 1, 1), trial(305, 1, 1, 8), trial(400, 1, 0)};
  CHECK(times(pick(large, 2, 1.03)) == std::vector<double>{300, 305});
}
