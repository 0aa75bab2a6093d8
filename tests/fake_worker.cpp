// A worker whose evaluator does what the plan's variant and the problem's model name tell it to.
// `fake_worker parent` is a search instead: it starts a worker, says the worker's pid on stdout and
// has it hang.
#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <thread>

#include "core/error.hpp"
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
                             : how == "no_trial" ? "{\"trial\": {\"stage\": 7}, \"busy_s\": 0}\n"
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
  double busy_s() const override { return busy_s_; }

 private:
  Gpu gpu_;
  double busy_s_ = 0;
  int num_prefetched_ = 0;
};

std::unique_ptr<Evaluator> make(int ordinal, const Problem& problem,
                                const EvaluatorOptions& options) {
  behave(problem.shape.model);
  return std::make_unique<FakeEvaluator>(ordinal, problem, options);
}

int be_parent(const std::string& program) {
  WorkerEvaluator evaluator(program, 0, Problem{}, EvaluatorOptions{});
  fmt::print("{}\n", evaluator.gpu().name);
  std::fflush(stdout);
  Request request;
  request.plan.steps = {{"gemm1", "spin", Point{}}};
  evaluator.evaluate(request);
  return 0;
}

}  // namespace
}  // namespace moetune

int main(int argc, char** argv) {
  if (argc > 1 && std::string(argv[1]) == "parent") return moetune::be_parent(argv[0]);
  return moetune::serve(moetune::kChildSocket, moetune::make);
}
