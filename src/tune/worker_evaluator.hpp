// Measures in a child process, so that a point that hangs, crashes or poisons the CUDA context
// costs the search one trial and not the run.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "core/child_process.hpp"
#include "tune/evaluator.hpp"
#include "tune/worker_protocol.hpp"

namespace moetune {

// How long a child may be silent before it is taken for hung.
struct WorkerLimits {
  double open_s = 600;   // weights of a large model, and the first compilations
  double trial_s = 120;  // the first trial of a token count also computes its reference
  int max_deaths = 3;    // in a row, after which the device is given up
};

// How the child is started.
struct WorkerCommand {
  // A running program is found there even when it is built anew meanwhile.
  std::string program = kOwnProgram;
  // Empty: `program worker`. Else a shell's words, such as "srun -N1 -n1 --gpus=1": runs
  // `launcher program worker --stdio`, and passes on its standard streams.
  std::string launcher = {};
};

// What befell a child: the status of the trial that did it.
struct Death {
  TrialStatus status;
  std::string reason;
  bool by_others = false;  // killed from outside, or lost with its launcher
};

// Plans that ended a child. Several evaluators may share one, from any thread.
class Quarantine {
 public:
  void add(const Plan& plan, const Death& death);
  // Of the plan, or of one of its steps.
  std::optional<Death> find(const Plan& plan) const;

 private:
  mutable std::mutex mutex_;
  std::map<std::string, Death> deaths_;  // by Plan::key()
};

// Evaluates in a child that is started now and started again when it has died. What killed it
// becomes the trial's status: timed_out when it hung, launch_failed when it crashed, answered
// nonsense, or reported Error(device), after which a CUDA context cannot be used. A plan that did
// so is quarantined: it and every plan that holds one of its steps gets that answer from memory.
// When the child was killed from outside, which was not the plan's doing, the trial is tried again,
// `max_deaths` times in all.
//
// Other errors of the child are thrown here as they are. Throws Error(device) when the child dies
// while opening, or `max_deaths` times in a row. Use from one thread: the child ends with it.
class WorkerEvaluator : public Evaluator {
 public:
  WorkerEvaluator(WorkerCommand command, int ordinal, const Problem& problem,
                  const EvaluatorOptions& options, const WorkerLimits& limits = {},
                  std::shared_ptr<Quarantine> quarantine = std::make_shared<Quarantine>());

  const Gpu& gpu() const override { return gpu_; }
  std::string nvrtc_version() const override { return nvrtc_version_; }
  void prefetch(std::span<const Request> requests) override;
  Trial evaluate(const Request& request) override;
  Usage usage() const override;

 private:
  struct Worker {
    explicit Worker(const WorkerCommand& command);
    ChildProcess process;
    Channel channel;
  };

  void open();  // when there is no child
  std::optional<Death> open_once();
  std::optional<Death> try_once(const Request& request, Trial& trial);
  // Asks, and has `read` take the answer apart. Returns how the child died when it did, or when
  // `read` throws; throws the Error that the child reports.
  std::optional<Death> ask(const nlohmann::ordered_json& message, double limit_s,
                           const std::function<void(const nlohmann::ordered_json&)>& read);
  Death bury(Channel::Result result, double limit_s);
  Death bury(TrialStatus status, std::string reason);

  WorkerCommand command_;
  nlohmann::ordered_json opening_;
  WorkerLimits limits_;
  std::unique_ptr<Worker> worker_;
  Gpu gpu_;
  std::string nvrtc_version_;
  Usage child_;
  Usage ended_;  // of children that have died; their greatest peak
  std::shared_ptr<Quarantine> quarantine_;
  int num_deaths_ = 0;  // in a row
};

// In a child that runs this very program.
std::unique_ptr<Evaluator> make_worker_evaluator(int ordinal, const Problem& problem,
                                                 const EvaluatorOptions& options);

}  // namespace moetune
