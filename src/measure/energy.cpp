#include "measure/energy.hpp"

namespace moetune {
namespace {

constexpr double kLeastUs = 0.5e6;
constexpr double kMostStillUs = 2e6;

}  // namespace

std::optional<double> energy_of_run_mj(const EnergyMeter& meter) {
  struct Move {
    double mj;
    double us;
    int num_runs;
  };
  std::optional<double> last = meter.read_mj();
  std::optional<Move> first;
  double us = 0;
  double moved_us = 0;
  for (int num_runs = 1; last && us - moved_us < kMostStillUs; ++num_runs) {
    us += meter.run();
    const std::optional<double> now = meter.read_mj();
    if (now == last) continue;
    last = now;
    moved_us = us;
    if (!now) break;
    if (!first) {
      first = {*now, us, num_runs};
    } else if (us - first->us >= kLeastUs) {
      return (*now - first->mj) / (num_runs - first->num_runs);
    }
  }
  return {};
}

}  // namespace moetune
