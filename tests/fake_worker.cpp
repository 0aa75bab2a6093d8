// A worker whose evaluator does what the plan's variant and the problem's model name tell it to.
// For the model "searched" it measures what tests/fake_search.hpp searches; for "faulty" too, but
// some points fail, each in its own way. `fake_worker parent` is a search instead: it starts a
// worker, says the worker's pid on stdout and has it hang.
#include <fmt/format.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <thread>

#include "core/error.hpp"
#include "tests/fake_search.hpp"
#include "tune/worker_evaluator.hpp"

namespace moetune {
namespace {

void behave(const std::string& how) {
  if (how == "hang")
    for (;;) pause();
  if (how == "spin")
    for (volatile bool forever = true; forever;) {
    }
  if (how == "abort") std::abort();
  if (how == "segfault") {
    signal(SIGSEGV, SIG_DFL);  // a sanitizer would catch it
    raise(SIGSEGV);
  }
  if (how == "kill") raise(SIGKILL);
  if (how == "exit") std::_Exit(3);
  if (how == "close") {
    close(kChildSocket);
    behave("hang");
  }
  if (how == "slow") std::this_thread::sleep_for(std::chrono::milliseconds(300));
  if (how == "device_error") throw Error(ErrorKind::device, "an illegal memory access");
  if (how == "input_error") throw Error(ErrorKind::input, "no such trace");
  if (how == "exception") throw std::runtime_error("unforeseen");
  if (how == "garbage" || how == "half_line" || how == "no_trial" || how == "bad_kind") {
    const std::string text = how == "garbage"    ? "\x01\xff not json\n"
                             : how == "no_trial" ? "{\"trial\": {\"stage\": 7}, \"usage\": {}}\n"
                             : how == "bad_kind"
                                 ? "{\"error\": {\"kind\": 77, \"message\": \"\"}}\n"
                                 : "{\"trial\": ";
    if (write(kChildSocket, text.data(), text.size()) < 0) std::_Exit(4);
    behave("hang");
  }
}

class FakeEvaluator : public Evaluator {
 public:
  FakeEvaluator(int ordinal, const Problem& problem, const EvaluatorOptions& options) {
    gpu_.name = std::to_string(getpid());
    gpu_.cc_major = 9;
    gpu_.smem_per_block = 232448;
    gpu_.read_gbps = 4100.5;
    // What open() was told, for the parent to compare.
    gpu_.driver = encode_open(ordinal, problem, options).dump();
  }
  const Gpu& gpu() const override { return gpu_; }
  std::string nvrtc_version() const override { return "13.0"; }
  void prefetch(std::span<const Request> requests) override {
    for (const Request& request : requests)
      if (request.plan.steps.at(0).variant == "input_error") behave("input_error");
    num_prefetched_ += static_cast<int>(requests.size());
  }
  Trial evaluate(const Request& request) override {
    behave(request.plan.steps.at(0).variant);
    busy_s_ += 0.5;
    Trial trial;
    trial.stage = request.stage;
    trial.num_tokens = request.num_tokens;
    trial.plan = request.plan;
    trial.registers = num_prefetched_;
    trial.timing.median_us = request.stop_above_us;
    trial.screened_out = request.thorough;
    trial.reason = "bytes \xff of a driver";
    return trial;
  }
  Usage usage() const override { return {busy_s_, 2 * busy_s_, 1}; }

 private:
  Gpu gpu_;
  double busy_s_ = 0;
  int num_prefetched_ = 0;
};

// None of them would win anything.
void fail_some(const Request& request, Trial& trial) {
  const Point& point = request.plan.steps.at(0).point;
  const auto is = [&](int m, int n) {
    return point.at("BLOCK_SIZE_M") == m && point.at("BLOCK_SIZE_N") == n;
  };
  if (request.stage == Stage::layer) return;
  if (is(256, 32)) behave("segfault");
  if (is(128, 64)) behave("spin");          // a kernel that loops for ever
  if (is(32, 256)) behave("device_error");  // one that wrote out of bounds
  if (is(16, 256)) behave("half_line");     // one whose process dies amid its answer
  if (is(128, 32)) behave("kill");          // one for which there is not enough memory
  if (is(16, 64)) {                         // one that returns NaN
    trial.status = TrialStatus::wrong_result;
    trial.rel_err = std::nan("");
  }
}

std::unique_ptr<Evaluator> make(int ordinal, const Problem& problem,
                                const EvaluatorOptions& options) {
  behave(problem.shape.model);
  if (problem.shape.model == "searched" || problem.shape.model == "faulty") {
    auto evaluator = std::make_unique<fake::FakeEvaluator>();
    evaluator->sleep_us = 200;
    if (problem.shape.model == "faulty") evaluator->alter = fail_some;
    return evaluator;
  }
  return std::make_unique<FakeEvaluator>(ordinal, problem, options);
}

int be_parent(const std::string& program) {
  WorkerEvaluator evaluator({program}, 0, Problem{}, EvaluatorOptions{});
  fmt::print("{}\n", evaluator.gpu().name);
  std::fflush(stdout);
  Request request;
  request.plan.steps = {{"gemm1", "spin", Point{}}};
  evaluator.evaluate(request);
  return 0;
}

// A search whose program is replaced while it runs; the test says when by SIGUSR1.
int restart() {
  spdlog::set_level(spdlog::level::off);  // it would log to stdout
  sigset_t wake;
  sigemptyset(&wake);
  sigaddset(&wake, SIGUSR1);
  sigprocmask(SIG_BLOCK, &wake, nullptr);
  WorkerEvaluator evaluator({}, 0, Problem{}, EvaluatorOptions{});
  fmt::print("{}\n", evaluator.gpu().name);
  std::fflush(stdout);
  int signal = 0;
  sigwait(&wake, &signal);
  Request request;
  request.plan.steps = {{"gemm1", "kill", Point{}}};
  evaluator.evaluate(request);
  request.plan.steps = {{"gemm1", "ok", Point{}}};
  fmt::print("{}\n", to_string(evaluator.evaluate(request).status));
  return 0;
}

}  // namespace
}  // namespace moetune

int main(int argc, char** argv) {
  using namespace std::chrono_literals;
  if (argc > 1 && std::string(argv[1]) == "parent") return moetune::be_parent(argv[0]);
  if (argc > 1 && std::string(argv[1]) == "restart") return moetune::restart();
  if (argc > 2 && std::string(argv[2]) == "--stdio") {
    const bool is_idle = std::getenv("FAKE_WORKER_IDLE") != nullptr;
    return moetune::serve_streams(moetune::make, is_idle ? 50ms : 1h);
  }
  return moetune::serve(moetune::kChildSocket, moetune::make);
}
