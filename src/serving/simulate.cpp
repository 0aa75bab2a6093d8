#include "serving/simulate.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <deque>

namespace moetune {
namespace {

struct Running {
  RequestOutcome outcome;
  std::int64_t prompt_left = 0;
  std::int64_t num_generated = 0;
  std::int64_t step_tokens = 0;  // in the present step
};

class Server {
 public:
  Server(std::span<const ServingRequest> requests, const ServerOptions& options,
         const StepTime& step_time)
      : requests_(requests), options_(options), step_time_(step_time) {}

  ServingRun run() {
    for (;;) {
      receive();
      if (running_.empty()) {
        if (next_ == requests_.size()) return std::move(result_);
        time_s_ = std::max(time_s_, requests_[next_].arrival_s);
        continue;
      }
      step();
    }
  }

 private:
  void receive() {
    for (; next_ < requests_.size() && requests_[next_].arrival_s <= time_s_; ++next_)
      waiting_.push_back(requests_[next_]);
    while (!waiting_.empty()) {
      const ServingRequest& oldest = waiting_.front();
      if (options_.timeout_s > 0 && time_s_ - oldest.arrival_s > options_.timeout_s) {
        end({oldest, false, 0, oldest.arrival_s + options_.timeout_s});
      } else if (static_cast<std::int64_t>(running_.size()) < options_.concurrency) {
        running_.push_back({{oldest, false, 0, 0}, oldest.prompt_tokens, 0, 0});
      } else {
        break;
      }
      waiting_.pop_front();
    }
  }

  void step() {
    std::int64_t left = options_.token_budget;
    for (Running& one : running_) {
      one.step_tokens = one.prompt_left == 0 ? std::min<std::int64_t>(1, left) : 0;
      left -= one.step_tokens;
    }
    for (Running& one : running_) {
      if (one.prompt_left == 0) continue;
      one.step_tokens = std::min(one.prompt_left, left);
      left -= one.step_tokens;
    }
    const std::int64_t num_tokens = options_.token_budget - left;
    const double step_s = step_time_(num_tokens);
    time_s_ += step_s;
    result_.busy_s += step_s;
    ++result_.num_steps;
    result_.num_step_tokens += num_tokens;
    for (Running& one : running_) advance(one);
    std::erase_if(running_, [](const Running& one) { return one.outcome.finished; });
  }

  void advance(Running& one) {
    if (one.step_tokens == 0) return;
    if (one.prompt_left > 0) {
      one.prompt_left -= one.step_tokens;
      if (one.prompt_left > 0) return;
      one.outcome.first_token_s = time_s_;
    }
    if (++one.num_generated < one.outcome.request.output_tokens) return;
    one.outcome.finished = true;
    one.outcome.finish_s = time_s_;
    end(one.outcome);
  }

  void end(const RequestOutcome& outcome) {
    result_.outcomes.push_back(outcome);
    result_.end_s = std::max(result_.end_s, outcome.finish_s);
  }

  std::span<const ServingRequest> requests_;
  const ServerOptions& options_;
  const StepTime& step_time_;
  std::size_t next_ = 0;  // of the requests that have not arrived
  std::deque<ServingRequest> waiting_;
  std::vector<Running> running_;  // in order of arrival
  double time_s_ = 0;
  ServingRun result_;
};

}  // namespace

ServingRun simulate(std::span<const ServingRequest> requests, const ServerOptions& options,
                    const StepTime& step_time) {
  return Server(requests, options, step_time).run();
}

std::vector<std::int64_t> padded_counts(std::int64_t most) {
  std::vector<std::int64_t> counts;
  const auto step_after = [](std::int64_t count) -> std::int64_t {
    if (count < 4) return count;
    if (count < 256) return 8 - count % 8;
    if (count < 512) return 16;
    return count < 2048 ? 64 : 256;
  };
  for (std::int64_t count = 1; count < most; count += step_after(count)) counts.push_back(count);
  counts.push_back(most);
  return counts;
}

double rate_for_load(const Workload& workload, const ServerOptions& options, double load,
                     const StepTime& step_time) {
  const auto places = static_cast<double>(options.concurrency);
  const auto prompt = static_cast<double>(workload.prompt_tokens);
  const auto output = static_cast<double>(workload.output_tokens);
  const auto budget = static_cast<double>(options.token_budget);
  // With all places taken, a step holds one token of each and the prompts of those that come anew.
  const double wanted = places * (prompt + output) / output;
  const double num_steps = output * std::max(1.0, wanted / budget);
  const double step_s = step_time(std::llround(std::clamp(wanted, 1.0, budget)));
  return load * places / (num_steps * step_s);
}

}  // namespace moetune
