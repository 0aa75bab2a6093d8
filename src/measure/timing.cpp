#include "measure/timing.hpp"

#include <algorithm>
#include <vector>

#include "core/statistics.hpp"

namespace moetune {

Timing time_graph(const Graph& graph, const Stream& stream, const TimingOptions& options,
                  bool& stopped) {
  stopped = false;
  for (int i = 0; i < options.num_warmups; ++i) graph.launch(stream);
  const Event begin;
  const Event end;
  std::vector<double> samples;
  for (int i = 0; i < options.num_samples; ++i) {
    begin.record(stream);
    graph.launch(stream);
    end.record(stream);
    samples.push_back(elapsed_us(begin, end) / options.num_calls);
    if (i == 0 && options.stop_above_us > 0 && !(samples[0] <= options.stop_above_us)) {
      stopped = true;
      break;
    }
  }
  std::sort(samples.begin(), samples.end());
  return {percentile(samples, 50), percentile(samples, 10), percentile(samples, 90),
          static_cast<int>(samples.size()), 0};
}

}  // namespace moetune
