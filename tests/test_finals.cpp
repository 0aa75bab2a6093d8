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
  const std::vector<Trial> trials{trial(10, 1, 0), trial(10.5, 1, 0, 8), trial(10.6, 1, 0, 16),
                                  trial(12, 1, 0, 2), trial(30, 0, 0)};
  CHECK(times(pick(trials, 2, 1.1)) == std::vector<double>{10, 10.5, 30});
  CHECK(times(pick(trials, 9, 1.1)) == std::vector<double>{10, 10.5, 10.6, 30});
  CHECK(pick({}, 2, 1.1).empty());
}

TEST_CASE("pick: other variants and ways of the sum too, where a launch less may make up for it") {
  const std::vector<Trial> small{trial(8, 1, 0), trial(8.1, 1, 0, 8), trial(9.9, 1, 1),
                                 trial(10, 1, 1, 8)};
  CHECK(times(pick(small, 2, 1.03)) == std::vector<double>{8, 8.1, 9.9});
  std::vector<Trial> other = small;
  other[1].plan.steps[0].variant = "swap_ab";
  other[3].plan.steps[0].variant = "swap_ab";
  CHECK(times(pick(other, 1, 1.03)) == std::vector<double>{8, 8.1, 9.9, 10});
  const std::vector<Trial> large{trial(300, 1, 1), trial(305, 1, 1, 8), trial(400, 1, 0)};
  CHECK(times(pick(large, 2, 1.03)) == std::vector<double>{300, 305});
}
