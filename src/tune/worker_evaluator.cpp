#include "tune/worker_evaluator.hpp"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>

#include "core/error.hpp"

namespace moetune {
namespace {

using nlohmann::ordered_json;

Channel::Clock::time_point after(double seconds) {
  return Channel::Clock::now() + std::chrono::duration_cast<Channel::Clock::duration>(
                                     std::chrono::duration<double>(seconds));
}

ErrorKind parse_kind(int kind) {
  if (kind < 0 || kind > static_cast<int>(ErrorKind::failed))
    throw Error(ErrorKind::input, "no such kind of error");
  return static_cast<ErrorKind>(kind);
}

std::vector<std::string> arguments(const WorkerCommand& command) {
  if (command.launcher.empty()) return {command.program, "worker"};
  return {"/bin/sh",       "-c",     command.launcher + R"( "$0" "$@")",
          command.program, "worker", "--stdio"};
}

}  // namespace

void Quarantine::add(const Plan& plan, const Death& death) {
  const std::lock_guard lock(mutex_);
  deaths_.emplace(plan.key(), death);
}

std::optional<Death> Quarantine::find(const Plan& plan) const {
  const std::lock_guard lock(mutex_);
  if (deaths_.empty()) return std::nullopt;
  if (const auto found = deaths_.find(plan.key()); found != deaths_.end()) return found->second;
  for (const Step& step : plan.steps)
    if (const auto found = deaths_.find(Plan{{step}}.key()); found != deaths_.end())
      return found->second;
  return std::nullopt;
}

WorkerEvaluator::Worker::Worker(const WorkerCommand& command)
    : process(arguments(command),
              command.launcher.empty() ? ChildEnd::descriptor : ChildEnd::standard_streams),
      channel(process.socket()) {}

WorkerEvaluator::WorkerEvaluator(WorkerCommand command, int ordinal, const Problem& problem,
                                 const EvaluatorOptions& options, const WorkerLimits& limits,
                                 std::shared_ptr<Quarantine> quarantine)
    : command_(std::move(command)),
      opening_({{"open", encode_open(ordinal, problem, options)}}),
      limits_(limits),
      quarantine_(std::move(quarantine)) {
  open();
}

void WorkerEvaluator::open() {
  std::optional<Death> death;
  for (int i = 0; i < limits_.max_deaths && !worker_; ++i) {
    death = open_once();
    if (!death) return;
    // What a launcher reports may be a command that can never work.
    if (!death->by_others || !command_.launcher.empty()) break;
  }
  if (death)
    throw Error(ErrorKind::device,
                fmt::format("cannot start the process that measures: {}; {}", death->reason,
                            command_.launcher.empty()
                                ? "is the GPU usable (nvidia-smi)?"
                                : "does its --launcher work, and is the program there?"));
}

std::optional<Death> WorkerEvaluator::open_once() {
  worker_ = std::make_unique<Worker>(command_);
  try {
    return ask(opening_, limits_.open_s, [this](const ordered_json& reply) {
      gpu_ = decode_gpu(reply.at("gpu"));
      nvrtc_version_ = reply.at("nvrtc").get<std::string>();
    });
  } catch (const Error&) {
    worker_.reset();
    throw;
  }
}

void WorkerEvaluator::prefetch(std::span<const Request> requests) {
  open();
  ordered_json list = ordered_json::array();
  for (const Request& request : requests)
    if (!quarantine_->find(request.plan)) list.push_back(encode(request));
  // A child that cannot be told is found out, and charged to a plan, by the next evaluate().
  worker_->channel.send({{"prefetch", list}}, after(limits_.trial_s));
}

Trial WorkerEvaluator::evaluate(const Request& request) {
  Trial trial;
  trial.stage = request.stage;
  trial.num_tokens = request.num_tokens;
  trial.plan = request.plan;
  if (const std::optional<Death> known = quarantine_->find(request.plan)) {
    trial.status = known->status;
    trial.reason = known->reason;
    return trial;
  }

  std::optional<Death> death = try_once(request, trial);
  for (int i = 1; death && death->by_others && i < limits_.max_deaths; ++i) {
    spdlog::warn("{}, not by the plan's doing: it is tried again", death->reason);
    death = try_once(request, trial);
  }
  if (!death) {
    num_deaths_ = 0;
    return trial;
  }

  quarantine_->add(request.plan, *death);
  spdlog::warn("{}: {}; this plan is not run again", request.plan.key(), death->reason);
  if (++num_deaths_ >= limits_.max_deaths)
    throw Error(ErrorKind::device,
                fmt::format("{} plans in a row ended the process that measures, the last one so: "
                            "{}; check the GPU (nvidia-smi), then resume",
                            num_deaths_, death->reason));
  trial.status = death->status;
  trial.reason = death->reason;
  return trial;
}

// One child at a time: their peaks do not add up.
Usage WorkerEvaluator::usage() const {
  return {ended_.busy_s + child_.busy_s, ended_.compile_s + child_.compile_s,
          std::max(ended_.peak_host_bytes, child_.peak_host_bytes)};
}

std::optional<Death> WorkerEvaluator::try_once(const Request& request, Trial& trial) {
  open();
  try {
    return ask({{"evaluate", encode(request)}}, limits_.trial_s, [&](const ordered_json& reply) {
      auto answered = reply.at("trial").get<Trial>();
      child_ = decode_usage(reply.at("usage"));
      trial = std::move(answered);
    });
  } catch (const Error& error) {
    // After a sticky CUDA error nothing more works in that process.
    if (error.kind() != ErrorKind::device) throw;
    return bury(TrialStatus::launch_failed, error.what());
  }
}

std::optional<Death> WorkerEvaluator::ask(const ordered_json& message, double limit_s,
                                          const std::function<void(const ordered_json&)>& read) {
  ErrorKind kind{};
  std::string error;
  try {
    const auto deadline = after(limit_s);
    std::string line;
    auto result = worker_->channel.send(message, deadline);
    if (result == Channel::Result::ok) result = worker_->channel.receive(line, deadline);
    if (result != Channel::Result::ok) return bury(result, limit_s);
    const ordered_json reply = ordered_json::parse(line);
    if (!reply.contains("error")) {
      read(reply);
      return std::nullopt;
    }
    kind = parse_kind(reply["error"].at("kind").get<int>());
    reply["error"].at("message").get_to(error);
  } catch (const std::exception&) {
    return bury(TrialStatus::launch_failed, "worker sent a malformed answer");
  }
  throw Error(kind, error);
}

Death WorkerEvaluator::bury(Channel::Result result, double limit_s) {
  if (result == Channel::Result::timed_out)
    return bury(TrialStatus::timed_out, fmt::format("no answer within {:g} s", limit_s));
  // The socket is closed: the child is ending by itself, and how it ends is the reason.
  const std::string end = worker_->process.finish(ChildProcess::kGraceMs);
  const bool by_others = worker_->process.was_killed() || !command_.launcher.empty();
  Death death = bury(TrialStatus::launch_failed, fmt::format("worker {}", end));
  death.by_others = by_others;
  return death;
}

Death WorkerEvaluator::bury(TrialStatus status, std::string reason) {
  worker_->process.finish(0);
  worker_.reset();
  ended_ = usage();
  child_ = {};
  return {status, std::move(reason)};
}

std::unique_ptr<Evaluator> make_worker_evaluator(int ordinal, const Problem& problem,
                                                 const EvaluatorOptions& options) {
  return std::make_unique<WorkerEvaluator>(WorkerCommand{}, ordinal, problem, options);
}

}  // namespace moetune
