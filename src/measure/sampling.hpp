// How samples are taken and which of them count, whatever it is that takes one.
#pragma once

#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "core/trial.hpp"

namespace moetune {

struct TimingOptions {
  int num_calls = 8;  // calls in a sample, which is divided by it
  int num_warmups = 3;
  int num_samples = 20;
  double stop_above_us = 0;  // give up after the first sample slower than this; 0: never
};

// What the GPU says of itself right after a block of samples.
struct ClockReading {
  int sm_mhz = 0;
  bool is_slowed = false;  // by heat or by the hardware; a power cap is normal for heavy GEMMs
};

struct Sampler {
  std::function<double()> take;  // one sample, microseconds
  // Asked after each block of samples. Empty, or nothing: there is no clock check.
  std::function<std::optional<ClockReading>()> read_clock;
};

// Median and percentiles. At least one sample.
Timing summarise(std::vector<double> samples);

// Takes out of samples[plan][turn] what a turn's have in common, such as a clock that stepped: each
// is scaled by its turn's pace, the geometric mean over plans, against the median pace. Under load
// a clock steps every few turns, and plans' medians would be of different clocks (blocking; Fisher:
// The design of experiments, 1935). A single plan's samples stay as they are.
void level_turns(std::span<std::vector<double>> samples);

// Which blocks of samples count: those not slowed and with a clock within 5 % of the median of
// theirs. The maximum clock is no yardstick: under a power cap no heavy GEMM reaches it.
std::vector<bool> steady(std::span<const ClockReading> blocks);

// Takes options.num_samples samples that count, with a clock check in blocks of 5. Those that do
// not are discarded, counted and replaced, up to as many again; if that does not suffice, all are
// kept and the timing says that its clock was unsteady. `stopped` is set when the first sample was
// above the limit: the timing then is that sample.
Timing take_samples(const TimingOptions& options, const Sampler& sampler, bool& stopped);

}  // namespace moetune
