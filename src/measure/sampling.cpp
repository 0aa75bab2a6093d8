#include "measure/sampling.hpp"

#include <algorithm>
#include <cmath>

#include "core/statistics.hpp"

namespace moetune {
namespace {

constexpr int kBlockSamples = 5;
constexpr double kClockBand = 0.05;
constexpr std::size_t kMaxEffort = 2;  // times the samples that are wanted

// Of the blocks for which `which` is true; at least one is.
double median_mhz(std::span<const ClockReading> blocks, const std::vector<bool>& which) {
  std::vector<double> clocks;
  for (std::size_t i = 0; i < blocks.size(); ++i)
    if (which[i]) clocks.push_back(blocks[i].sm_mhz);
  std::sort(clocks.begin(), clocks.end());
  return percentile(clocks, 50);
}

}  // namespace

Timing summarise(std::vector<double> samples) {
  std::sort(samples.begin(), samples.end());
  return {.median_us = percentile(samples, 50),
          .p10_us = percentile(samples, 10),
          .p90_us = percentile(samples, 90),
          .num_samples = static_cast<int>(samples.size())};
}

void level_turns(std::span<std::vector<double>> samples) {
  if (samples.size() < 2) return;
  std::vector<double> paces(samples.front().size(), 0);  // logarithms
  for (const std::vector<double>& plan : samples) {
    for (std::size_t turn = 0; turn < paces.size(); ++turn)
      paces[turn] += std::log(plan[turn]) / static_cast<double>(samples.size());
  }
  std::vector<double> sorted = paces;
  std::sort(sorted.begin(), sorted.end());
  const double middle = percentile(sorted, 50);
  for (std::vector<double>& plan : samples)
    for (std::size_t turn = 0; turn < paces.size(); ++turn)
      plan[turn] *= std::exp(middle - paces[turn]);
}

std::vector<bool> steady(std::span<const ClockReading> blocks) {
  std::vector<bool> counts;
  for (const ClockReading& block : blocks) counts.push_back(!block.is_slowed);
  if (std::find(counts.begin(), counts.end(), true) == counts.end()) return counts;
  const double middle = median_mhz(blocks, counts);
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    counts[i] = counts[i] && std::abs(blocks[i].sm_mhz - middle) <= kClockBand * middle;
  }
  return counts;
}

Timing take_samples(const TimingOptions& options, const Sampler& sampler, bool& stopped) {
  stopped = false;
  std::vector<double> samples;
  std::vector<std::size_t> block_of;  // [samples]
  std::vector<ClockReading> blocks;
  std::vector<bool> counts;
  bool checks = static_cast<bool>(sampler.read_clock);
  const auto num_good = [&] {
    if (!checks) return static_cast<int>(samples.size());
    return static_cast<int>(std::count_if(block_of.begin(), block_of.end(),
                                          [&](std::size_t block) { return counts[block]; }));
  };
  const auto most = kMaxEffort * static_cast<std::size_t>(options.num_samples);
  for (int good = 0; good < options.num_samples && samples.size() < most; good = num_good()) {
    const int wanted = options.num_samples - good;
    for (int i = 0; i < (checks ? std::min(wanted, kBlockSamples) : wanted); ++i) {
      samples.push_back(sampler.take());
      block_of.push_back(blocks.size());
      if (samples.size() > 1 || !(options.stop_above_us > 0)) continue;
      if (!(samples[0] <= options.stop_above_us)) {
        stopped = true;
        return summarise(std::move(samples));
      }
    }
    if (!checks) continue;
    const std::optional<ClockReading> reading = sampler.read_clock();
    checks = reading.has_value();
    if (!checks) continue;
    blocks.push_back(*reading);
    counts = steady(blocks);
  }
  if (!checks || blocks.empty()) return summarise(std::move(samples));

  if (num_good() < options.num_samples) {
    const std::vector<bool> all(blocks.size(), true);
    Timing timing = summarise(std::move(samples));
    timing.clock_mhz = static_cast<int>(std::lround(median_mhz(blocks, all)));
    timing.unsteady = true;
    return timing;
  }
  std::vector<double> kept;
  for (std::size_t i = 0; i < samples.size(); ++i)
    if (counts[block_of[i]]) kept.push_back(samples[i]);
  const auto num_discarded = static_cast<int>(samples.size() - kept.size());
  Timing timing = summarise(std::move(kept));
  timing.num_discarded = num_discarded;
  timing.clock_mhz = static_cast<int>(std::lround(median_mhz(blocks, counts)));
  return timing;
}

}  // namespace moetune
