// What a kernel costs in energy, by a counter that moves only every tens of milliseconds.
#pragma once

#include <functional>
#include <optional>

namespace moetune {

struct EnergyMeter {
  std::function<double()> run;  // the work, some milliseconds of it; microseconds that it took
  std::function<std::optional<double>()> read_mj;
};

// Millijoules of one run: what the counter rose by between two of its moves at least half a second
// apart, idle power included. Nothing when it does not answer, or stands still for two seconds.
std::optional<double> energy_of_run_mj(const EnergyMeter& meter);

}  // namespace moetune
