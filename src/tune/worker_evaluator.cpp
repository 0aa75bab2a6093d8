#include "tune/worker_evaluator.hpp"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

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

}  // namespace

WorkerEvaluator::WorkerEvaluator(std::string program, int ordinal, const Problem& problem,
                                 const EvaluatorOptions& options, const WorkerLimits& limits)
    : program_(std::move(program)),
      opening_({{"open", encode_open(ordinal, problem, options)}}),
      limits_(limits) {
  open();
}

void WorkerEvaluator::open() {
  if (worker_) return;
  worker_ = std::make_unique<Worker>(program_);
  std::optional<Death> death;
  try {
    death = ask(opening_, limits_.open_s, [this](const ordered_json& reply) {
      gpu_ = decode_gpu(reply.at("gpu"));
      nvrtc_version_ = reply.at("nvrtc").get<std::string>();
    });
  } catch (const Error&) {
    worker_.reset();
    throw;
  }
  if (death)
    throw Error(ErrorKind::device,
                fmt::format("cannot start the process that measures: {}; is the GPU usable "
                            "(nvidia-smi)?",
                            death->reason));
}

void WorkerEvaluator::prefetch(std::span<const Request> requests) {
  open();
  ordered_json list = ordered_json::array();
  for (const Request& request : requests)
    if (!quarantined(request.plan)) list.push_back(encode(request));
  // A child that cannot be told is found out, and charged to a plan, by the next evaluate().
  worker_->channel.send({{"prefetch", list}}, after(limits_.trial_s));
}

Trial WorkerEvaluator::evaluate(const Request& request) {
  Trial trial;
  trial.stage = request.stage;
  trial.num_tokens = request.num_tokens;
  trial.plan = request.plan;
  if (const Death* known = quarantined(request.plan)) {
    trial.status = known->status;
    trial.reason = known->reason;
    return trial;
  }

  open();
  std::optional<Death> death;
  try {
    death = ask({{"evaluate", encode(request)}}, limits_.trial_s, [&](const ordered_json& reply) {
      auto answered = reply.at("trial").get<Trial>();
      child_busy_s_ = reply.at("busy_s").get<double>();
      trial = std::move(answered);
    });
  } catch (const Error& error) {
    // After a sticky CUDA error nothing more works in that process.
    if (error.kind() != ErrorKind::device) throw;
    death = bury(TrialStatus::launch_failed, error.what());
  }
  if (!death) {
    num_deaths_ = 0;
    return trial;
  }

  quarantine_.emplace(request.plan.key(), *death);
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

std::optional<WorkerEvaluator::Death> WorkerEvaluator::ask(
    const ordered_json& message, double limit_s,
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

WorkerEvaluator::Death WorkerEvaluator::bury(Channel::Result result, double limit_s) {
  if (result == Channel::Result::timed_out)
    return bury(TrialStatus::timed_out, fmt::format("no answer within {:g} s", limit_s));
  // The socket is closed: the child is ending by itself, and how it ends is the reason.
  const std::string end = worker_->process.finish(ChildProcess::kGraceMs);
  return bury(TrialStatus::launch_failed, fmt::format("worker {}", end));
}

WorkerEvaluator::Death WorkerEvaluator::bury(TrialStatus status, std::string reason) {
  worker_->process.finish(0);
  worker_.reset();
  ended_busy_s_ += std::exchange(child_busy_s_, 0.0);
  return {status, std::move(reason)};
}

const WorkerEvaluator::Death* WorkerEvaluator::quarantined(const Plan& plan) const {
  if (quarantine_.empty()) return nullptr;
  if (const auto found = quarantine_.find(plan.key()); found != quarantine_.end())
    return &found->second;
  for (const Step& step : plan.steps)
    if (const auto found = quarantine_.find(Plan{{step}}.key()); found != quarantine_.end())
      return &found->second;
  return nullptr;
}

std::unique_ptr<Evaluator> make_worker_evaluator(std::string program, int ordinal,
                                                 const Problem& problem,
                                                 const EvaluatorOptions& options) {
  return std::make_unique<WorkerEvaluator>(std::move(program), ordinal, problem, options);
}

}  // namespace moetune
