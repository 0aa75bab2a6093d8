#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "report/journey_report.hpp"

namespace moetune {
namespace {

constexpr double kWidth = 860, kHeight = 440;
constexpr double kLeft = 64, kRight = 220, kTop = 40, kBottom = 52;
// Okabe and Ito's colours, told apart by most people with a colour vision deficiency.
constexpr std::array kColours{"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"};

double x_of(int level) {
  return kLeft + (level + 0.5) / kNumLevels * (kWidth - kLeft - kRight);
}

// The axis: powers of ten from below the least speedup to above the greatest.
struct Axis {
  int low = 0;
  int high = 1;
  double y_of(double speedup) const {
    const double part = (std::log10(speedup) - low) / (high - low);
    return kHeight - kBottom - std::clamp(part, 0.0, 1.0) * (kHeight - kTop - kBottom);
  }
};

Axis axis_of(std::span<const JourneyRow> rows) {
  Axis axis;
  for (const JourneyRow& row : rows) {
    for (int level = 0; level < kNumLevels; ++level) {
      const double speedup = speedup_over_naive(row, level);
      if (!(speedup > 0)) continue;
      axis.low = std::min(axis.low, static_cast<int>(std::floor(std::log10(speedup))));
      axis.high = std::max(axis.high, static_cast<int>(std::ceil(std::log10(speedup))));
    }
  }
  return axis;
}

std::string curve(const JourneyRow& row, const Axis& axis, const char* colour) {
  std::string points;
  std::string marks;
  for (int level = 0; level < kNumLevels; ++level) {
    const double speedup = speedup_over_naive(row, level);
    if (!(speedup > 0)) continue;
    points += fmt::format("{:.1f},{:.1f} ", x_of(level), axis.y_of(speedup));
    marks += fmt::format(
        R"(<circle cx="{:.1f}" cy="{:.1f}" r="4" fill="{}"><title>level {}, {}: {:.1f} us, {:.2f}x</title></circle>)"
        "\n",
        x_of(level), axis.y_of(speedup), colour, level, level_name(level),
        row.levels.at(static_cast<std::size_t>(level)).timing.median_us, speedup);
  }
  return fmt::format("<polyline stroke=\"{}\" points=\"{}\"/>\n{}", colour, points, marks);
}

}  // namespace

std::string journey_svg(const BenchRun& run, std::span<const JourneyRow> rows) {
  const Axis axis = axis_of(rows);
  std::string svg = fmt::format(
      R"(<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0} {1}" width="{0}" height="{1}" role="img">
<title>Speedup of one MoE layer over level 0, level by level</title>
<style>
svg {{ background: #fff; color: #222; font: 13px sans-serif }}
@media (prefers-color-scheme: dark) {{ svg {{ background: #181818; color: #ddd }} }}
text {{ fill: currentColor }} .grid {{ stroke: currentColor; opacity: 0.2 }}
polyline {{ fill: none; stroke-width: 2 }}
</style>
<text x="{2:.1f}" y="20">Speedup over level 0 on {3}{4}{5}</text>
)",
      kWidth, kHeight, kLeft, run.gpu.name, run.commit.empty() ? "" : ", commit ", run.commit);
  for (int power = axis.low; power <= axis.high; ++power) {
    const double speedup = std::pow(10.0, power);
    svg += fmt::format(R"(<line class="grid" x1="{0:.1f}" x2="{1:.1f}" y1="{2:.1f}" y2="{2:.1f}"/>)"
                       R"(<text x="{3:.1f}" y="{4:.1f}" text-anchor="end">{5:g}x</text>)"
                       "\n",
                       kLeft, kWidth - kRight, axis.y_of(speedup), kLeft - 8,
                       axis.y_of(speedup) + 4, speedup);
  }
  for (int level = 0; level < kNumLevels; ++level) {
    // Every other label a line lower: they are longer than a step.
    svg += fmt::format(R"(<text x="{:.1f}" y="{:.1f}" text-anchor="middle">{} {}</text>)"
                       "\n",
                       x_of(level), kHeight - kBottom + (level % 2 == 0 ? 20 : 38), level,
                       level_name(level));
  }
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const JourneyRow& row = rows[i];
    const char* colour = kColours[i % kColours.size()];
    const double y = kTop + 16 + 20 * static_cast<double>(i);
    svg += curve(row, axis, colour);
    svg += fmt::format(
        R"(<line x1="{0:.1f}" x2="{1:.1f}" y1="{2:.1f}" y2="{2:.1f}" stroke="{3}" stroke-width="2"/>)"
        R"(<text x="{4:.1f}" y="{5:.1f}">{6}, {7} tokens</text>)"
        "\n",
        kWidth - kRight + 10, kWidth - kRight + 30, y, colour, kWidth - kRight + 36, y + 4,
        row.model, row.problem.num_tokens);
  }
  return svg + "</svg>\n";
}

}  // namespace moetune
