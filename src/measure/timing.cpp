#include "measure/timing.hpp"

namespace moetune {

GraphTiming time_graph(const Graph& graph, const Stream& stream, const TimingOptions& options,
                       const std::function<std::optional<ClockReading>()>& read_clock) {
  GraphTiming result;
  const Event begin;
  const Event end;
  begin.record(stream);
  for (int i = 0; i < options.num_warmups; ++i) graph.launch(stream);
  end.record(stream);
  result.busy_us = elapsed_us(begin, end);

  Sampler sampler;
  sampler.take = [&] {
    begin.record(stream);
    graph.launch(stream);
    end.record(stream);
    const double replay_us = elapsed_us(begin, end);
    result.busy_us += replay_us;
    return replay_us / options.num_calls;
  };
  if (read_clock) {
    sampler.read_clock = [&] {
      begin.record(stream);
      graph.launch(stream);
      end.record(stream);
      const std::optional<ClockReading> reading = read_clock();
      result.busy_us += elapsed_us(begin, end);
      return reading;
    };
  }
  result.timing = take_samples(options, sampler, result.stopped);
  return result;
}

Timing time_graph(const Graph& graph, const Stream& stream, const TimingOptions& options,
                  bool& stopped) {
  const GraphTiming result = time_graph(graph, stream, options, {});
  stopped = result.stopped;
  return result.timing;
}

}  // namespace moetune
