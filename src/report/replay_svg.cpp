#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>

#include "report/replay_summary.hpp"

namespace moetune {
namespace {

constexpr double kWidth = 720, kHeight = 420;
constexpr double kLeft = 64, kRight = 190, kTop = 24, kBottom = 52;
constexpr double kLeastShare = 0.002;  // of the points, where the axis begins
constexpr double kMostRatio = 1.5;     // where the other ends
constexpr int kNumSamples = 72;
// Okabe and Ito's colours, told apart by most people with a colour vision deficiency.
constexpr std::array kColours{"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"};

double x_of(double share) {
  const double part = std::log(share / kLeastShare) / std::log(1 / kLeastShare);
  return kLeft + std::clamp(part, 0.0, 1.0) * (kWidth - kLeft - kRight);
}

double y_of(double ratio) {
  const double part = (std::min(ratio, kMostRatio) - 1) / (kMostRatio - 1);
  return kHeight - kBottom - part * (kHeight - kTop - kBottom);
}

double best_after(const EntryRun& run, double share) {
  const double limit = share * static_cast<double>(run.num_points);
  double ratio = kMostRatio;
  for (const EntryRun::Improvement& improvement : run.improvements)
    if (static_cast<double>(improvement.num_evaluations) <= limit) ratio = improvement.ratio;
  return ratio;
}

std::string line(const std::vector<const EntryRun*>& runs) {
  std::string points;
  for (int n = 0; n < kNumSamples; ++n) {
    const double share = kLeastShare * std::pow(1 / kLeastShare, n / (kNumSamples - 1.0));
    std::vector<double> ratios;
    ratios.reserve(runs.size());
    for (const EntryRun* run : runs) ratios.push_back(best_after(*run, share));
    const auto middle = ratios.begin() + static_cast<std::ptrdiff_t>(ratios.size() / 2);
    std::nth_element(ratios.begin(), middle, ratios.end());
    points += fmt::format("{:.1f},{:.1f} ", x_of(share), y_of(*middle));
  }
  return points;
}

}  // namespace

std::string replay_svg(const std::vector<JournalReplay>& replays) {
  std::vector<std::string> names;  // in the order of the first journal's
  std::map<std::string, std::vector<const EntryRun*>> runs;
  for (const JournalReplay& replay : replays) {
    for (const StrategyReplay& strategy : replay.strategies) {
      if (!runs.contains(strategy.strategy)) names.push_back(strategy.strategy);
      for (const std::vector<EntryRun>& of_seed : strategy.runs)
        for (const EntryRun& run : of_seed) runs[strategy.strategy].push_back(&run);
    }
  }
  std::string svg = fmt::format(
      R"(<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0} {1}" width="{0}" height="{1}" role="img">
<title>Best so far over the best of the record, against the share of points looked at</title>
<style>
svg {{ background: #fff; color: #222; font: 13px sans-serif }}
@media (prefers-color-scheme: dark) {{ svg {{ background: #181818; color: #ddd }} }}
text {{ fill: currentColor }} .grid {{ stroke: currentColor; opacity: 0.2 }}
polyline {{ fill: none; stroke-width: 2 }}
</style>
)",
      kWidth, kHeight);
  for (const double ratio : {1.0, 1.01, 1.05, 1.1, 1.2, 1.3, 1.4, 1.5}) {
    svg += fmt::format(R"(<line class="grid" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>)",
                       kLeft, kWidth - kRight, y_of(ratio), y_of(ratio));
    // 1.01 has a line, but no room for its label.
    if (ratio != 1.01) {
      svg += fmt::format(R"(<text x="{:.1f}" y="{:.1f}" text-anchor="end">{:.2f}</text>)",
                         kLeft - 8, y_of(ratio) + 4, ratio);
    }
    svg += '\n';
  }
  for (const double share : {0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0}) {
    svg += fmt::format(R"(<line class="grid" x1="{0:.1f}" x2="{0:.1f}" y1="{1:.1f}" y2="{2:.1f}"/>)"
                       R"(<text x="{0:.1f}" y="{3:.1f}" text-anchor="middle">{4:g}</text>)"
                       "\n",
                       x_of(share), kTop, kHeight - kBottom, kHeight - kBottom + 18, 100 * share);
  }
  svg += fmt::format(
      R"(<text x="{:.1f}" y="{:.1f}" text-anchor="middle">% of the points looked at</text>)"
      "\n",
      (kLeft + kWidth - kRight) / 2, kHeight - 12);
  for (std::size_t i = 0; i < names.size(); ++i) {
    const char* colour = kColours[i % kColours.size()];
    const double y = kTop + 16 + 20 * static_cast<double>(i);
    svg +=
        fmt::format("<polyline stroke=\"{}\" points=\"{}\"/>\n", colour, line(runs.at(names[i])));
    svg += fmt::format(
        R"(<line x1="{0:.1f}" x2="{1:.1f}" y1="{2:.1f}" y2="{2:.1f}" stroke="{3}" stroke-width="2"/>)"
        R"(<text x="{4:.1f}" y="{5:.1f}">{6}</text>)"
        "\n",
        kWidth - kRight + 14, kWidth - kRight + 34, y, colour, kWidth - kRight + 40, y + 4,
        names[i]);
  }
  return svg + "</svg>\n";
}

}  // namespace moetune
