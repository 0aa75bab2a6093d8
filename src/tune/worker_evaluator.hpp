// Measures in a child process, so that a point that hangs, crashes or poisons the CUDA context
// costs the search one trial and not the run.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "tune/child_process.hpp"
#include "tune/evaluator.hpp"
#include "tune/worker_protocol.hpp"

namespace moetune {

// How long a child may be silent before it is taken for hung.
struct WorkerLimits {
  double open_s = 600;   // weights of a large model, and the first compilations
  double trial_s = 120;  // the first trial of a token count also computes its reference
  int max_deaths = 3;    // in a row, after which the device is given up
};

// Evaluates in a child that is started now and started again when it has died. What killed it
// becomes the trial's status: timed_out when it hung, launch_failed when it crashed, answered
// nonsense, or reported Error(device), after which a CUDA context cannot be used. A plan that did
// so is quarantined: it and every plan that holds one of its steps gets that answer from memory.
//
// Other errors of the child are thrown here as they are. Throws Error(device) when the child dies
// while opening, or `max_deaths` times in a row. Use from one thread: the child ends with it.
class WorkerEvaluator : public Evaluator {
 public:
  // Runs `program worker`, which calls serve(kChildSocket, ...).
  WorkerEvaluator(std::string program, int ordinal, const Problem& problem,
                  const EvaluatorOptions& options, const WorkerLimits& limits = {});

  const Gpu& gpu() const override { return gpu_; }
  std::string nvrtc_version() const override { return nvrtc_version_; }
  void prefetch(std::span<const Request> requests) override;
  Trial evaluate(const Request& request) override;
  double busy_s() const override { return ended_busy_s_ + child_busy_s_; }

 private:
  struct Worker {
    explicit Worker(const std::string& program)
        : process({program, "worker"}), channel(process.socket()) {}
    ChildProcess process;
    Channel channel;
  };
  // What befell a child: the status of the trial that did it.
  struct Death {
    TrialStatus status;
    std::string reason;
  };

  void open();  // when there is no child
  // Asks, and has `read` take the answer apart. Returns how the child died when it did, or when
  // `read` throws; throws the Error that the child reports.
  std::optional<Death> ask(const nlohmann::ordered_json& message, double limit_s,
                           const std::function<void(const nlohmann::ordered_json&)>& read);
  Death bury(Channel::Result result, double limit_s);
  Death bury(TrialStatus status, std::string reason);
  const Death* quarantined(const Plan& plan) const;

  std::string program_;
  nlohmann::ordered_json opening_;
  WorkerLimits limits_;
  std::unique_ptr<Worker> worker_;
  Gpu gpu_;
  std::string nvrtc_version_;
  double child_busy_s_ = 0;
  double ended_busy_s_ = 0;                  // of children that have died
  std::map<std::string, Death> quarantine_;  // by Plan::key()
  int num_deaths_ = 0;                       // in a row
};

std::unique_ptr<Evaluator> make_worker_evaluator(std::string program, int ordinal,
                                                 const Problem& problem,
                                                 const EvaluatorOptions& options);

}  // namespace moetune
