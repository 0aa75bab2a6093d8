#include "tune/evaluator_pool.hpp"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <set>
#include <utility>

#include "core/error.hpp"

namespace moetune {
namespace {

// Looks measured but not yet asked for, a member: what a kill of the search may lose, and what a
// slow trial elsewhere may let pile up.
constexpr std::size_t kAhead = 48;
// Of a single member: no more than keeps it busy while its last answer is dealt with.
constexpr std::size_t kAheadAlone = 2;

std::string look_key(const Request& request) {
  return fmt::format("{}|{}|{}", to_string(request.stage), request.num_tokens, request.plan.key());
}

// Whether all of a token count's are for the same member.
bool stays_home(const Request& request) {
  return request.thorough || request.stage == Stage::layer;
}

std::string reason(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const std::exception& e) {
    return e.what();
  }
}

}  // namespace

EvaluatorPool::EvaluatorPool(const std::vector<Make>& makers) {
  for (std::size_t i = 0; i < makers.size(); ++i) members_.push_back(std::make_unique<Member>());
  for (std::size_t i = 0; i < makers.size(); ++i) {
    Member& member = *members_[i];
    member.thread = std::jthread([this, &member, make = makers[i]] { live(member, make); });
  }
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] {
    return std::all_of(members_.begin(), members_.end(),
                       [](const auto& member) { return member->is_open || member->error; });
  });
  std::vector<std::unique_ptr<Member>> failed;
  for (auto& member : members_)
    if (!member->is_open) failed.push_back(std::move(member));
  std::erase(members_, nullptr);
  is_ending_ = members_.empty();
  std::string difference;
  for (const auto& member : members_) {
    if (member->gpu.name == gpu().name && member->nvrtc_version == nvrtc_version()) continue;
    difference = fmt::format("{} with NVRTC {} and {} with NVRTC {}", gpu().name, nvrtc_version(),
                             member->gpu.name, member->nvrtc_version);
    is_ending_ = true;
  }
  lock.unlock();
  if (is_ending_) {
    work_.notify_all();
    const std::exception_ptr error = failed.empty() ? nullptr : failed.front()->error;
    members_.clear();  // joins the threads while the rest of this still lives
    failed.clear();
    if (difference.empty()) std::rethrow_exception(error);
    throw Error(ErrorKind::device,
                fmt::format("one table is for one kind of GPU and compiler, and here are {}; "
                            "search on each kind by itself",
                            difference));
  }
  for (const auto& member : failed)
    spdlog::warn("one GPU less of {}: {}", makers.size(), reason(member->error));
}

EvaluatorPool::~EvaluatorPool() {
  {
    const std::lock_guard lock(mutex_);
    is_ending_ = true;
  }
  work_.notify_all();
  members_.clear();
}

void EvaluatorPool::live(Member& member, const Make& make) {
  std::unique_ptr<Evaluator> evaluator;
  try {
    evaluator = make();
    const std::lock_guard lock(mutex_);
    member.gpu = evaluator->gpu();
    member.nvrtc_version = evaluator->nvrtc_version();
    member.is_open = true;
  } catch (const std::exception&) {
    const std::lock_guard lock(mutex_);
    member.error = std::current_exception();
    member.works = false;
  }
  changed_.notify_all();
  if (evaluator) work(member, *evaluator);
}

void EvaluatorPool::work(Member& member, Evaluator& evaluator) {
  std::unique_lock lock(mutex_);
  for (;;) {
    JobPtr job;
    work_.wait(lock, [&] {
      return is_ending_ || (job = pick(member)) != nullptr || !member.compile.empty();
    });
    if (is_ending_) return;
    const std::vector<Request> compile = std::exchange(member.compile, {});
    Trial trial;
    std::exception_ptr error;
    bool is_lost = false;
    lock.unlock();
    try {
      if (!compile.empty()) evaluator.prefetch(compile);
      if (job) trial = evaluator.evaluate(job->request);
    } catch (const Error& e) {
      error = std::current_exception();
      is_lost = e.kind() == ErrorKind::device;
    } catch (const std::exception&) {
      error = std::current_exception();
    }
    const Usage usage = evaluator.usage();
    lock.lock();
    member.usage = usage;
    if (is_lost) {
      member.error = error;
      lose(member, job);
      return;
    }
    if (!job) continue;
    job->trial = std::move(trial);
    job->error = error;
    job->state = State::done;
    if (job->is_dropped) --num_ahead_;
    changed_.notify_all();
  }
}

// What it was doing goes to the others: a plan that ended this member's process once too often may
// be innocent, and is quarantined if not.
void EvaluatorPool::lose(Member& member, const JobPtr& job) {
  member.works = false;
  spdlog::warn("a GPU is lost: {}", reason(member.error));
  if (job && job->is_look) {
    job->state = State::waiting;
    if (!job->is_asked) --num_ahead_;
    urgent_.push_front(job);
  } else if (job) {
    job->error = member.error;
    job->state = State::done;
  }
  changed_.notify_all();
  work_.notify_all();
}

EvaluatorPool::JobPtr EvaluatorPool::pick(Member& member) {
  if (!member.thorough.empty()) {
    JobPtr job = std::move(member.thorough.front());
    member.thorough.pop_front();
    job->state = State::running;
    return job;
  }
  if (JobPtr job = pick_look(urgent_, true)) return job;
  const std::size_t most = members_.size() == 1 ? kAheadAlone : kAhead * members_.size();
  if (num_ahead_ >= most) return nullptr;
  const bool any_count = num_tokens_ == 0 || (in_finals_ && &member != home(num_tokens_));
  JobPtr job = pick_look(member.looks, any_count);
  // Nothing of its own: help whoever has most left.
  std::set<Member*> asked{&member};
  while (!job && asked.size() < members_.size()) {
    Member* fullest = nullptr;
    for (const auto& other : members_) {
      if (asked.contains(other.get())) continue;
      if (fullest == nullptr || other->looks.size() > fullest->looks.size()) fullest = other.get();
    }
    asked.insert(fullest);
    job = pick_look(fullest->looks, any_count);
  }
  // The bound that holds now: when the look was announced there may have been none.
  if (job && !job->is_asked && job->request.stage == stage_ &&
      job->request.num_tokens == num_tokens_) {
    job->request.stop_above_us = stop_above_us_.at(is_fp8(job->request.plan));
  }
  return job;
}

EvaluatorPool::JobPtr EvaluatorPool::pick_look(std::deque<JobPtr>& looks, bool any_count) {
  std::erase_if(looks,
                [](const JobPtr& job) { return job->state != State::waiting || job->is_dropped; });
  const auto found = std::find_if(looks.begin(), looks.end(), [&](const JobPtr& job) {
    return any_count || job->request.num_tokens == num_tokens_;
  });
  if (found == looks.end()) return nullptr;
  JobPtr job = *found;
  looks.erase(found);
  job->state = State::running;
  if (!job->is_asked) ++num_ahead_;
  return job;
}

EvaluatorPool::Member* EvaluatorPool::home(std::int64_t num_tokens) {
  Member*& member = homes_[num_tokens];
  if (member == nullptr) {
    member = std::find_if(members_.begin(), members_.end(), [](const auto& one) {
               return one->works;
             })->get();
  }
  return member;
}

bool EvaluatorPool::any_works() const {
  return std::any_of(members_.begin(), members_.end(),
                     [](const auto& member) { return member->works; });
}

void EvaluatorPool::forget(std::map<std::string, JobPtr>::iterator look) {
  // One that runs counts until it is done.
  if (look->second->state == State::done) --num_ahead_;
  look->second->is_dropped = true;
  looks_.erase(look);
}

void EvaluatorPool::drop_looks(Stage stage, std::int64_t num_tokens) {
  for (auto look = looks_.begin(); look != looks_.end();) {
    const auto next = std::next(look);
    const Request& request = look->second->request;
    if (request.stage == stage && request.num_tokens == num_tokens) forget(look);
    look = next;
  }
}

void EvaluatorPool::prefetch(std::span<const Request> requests) {
  const std::lock_guard lock(mutex_);
  if (!any_works()) return;  // evaluate() says so
  for (const Request& request : requests) {
    Member* member = nullptr;
    do {
      member = members_[next_member_++ % members_.size()].get();
    } while (!member->works);
    if (!stays_home(request) && request.urgency != Urgency::perhaps) {
      const auto [look, is_new] = looks_.try_emplace(look_key(request), nullptr);
      if (is_new) {
        look->second = std::make_shared<Job>();
        look->second->request = request;
        look->second->member = member;
        member->looks.push_back(look->second);
      }
      member = look->second->member;
    }
    // Compiled where it will most likely run.
    member->compile.push_back(request);
  }
  work_.notify_all();
}

Trial EvaluatorPool::evaluate(const Request& request) {
  std::unique_lock lock(mutex_);
  if (!any_works()) std::rethrow_exception(members_.front()->error);
  JobPtr job;
  Member* only = nullptr;
  if (stays_home(request)) {
    // The finals have begun: what was announced of these looks will not be asked for.
    num_tokens_ = request.num_tokens;
    in_finals_ = true;
    drop_looks(request.stage, request.num_tokens);
    only = home(request.num_tokens);
    if (!only->works) {
      throw Error(ErrorKind::device,
                  fmt::format("the GPU that measured the finalists at {} tokens is lost: {}; "
                              "resume to measure them on another",
                              request.num_tokens, reason(only->error)));
    }
    job = std::make_shared<Job>();
    job->request = request;
    job->is_look = false;
    only->thorough.push_back(job);
  } else {
    if (request.stage != stage_ || request.num_tokens != num_tokens_) {
      drop_looks(stage_, num_tokens_);
      stop_above_us_ = {};
    }
    stage_ = request.stage;
    num_tokens_ = request.num_tokens;
    in_finals_ = false;
    stop_above_us_.at(is_fp8(request.plan)) = request.stop_above_us;
    if (const auto look = looks_.find(look_key(request)); look != looks_.end()) {
      job = look->second;
      if (job->state != State::waiting) --num_ahead_;
      looks_.erase(look);
    } else {
      job = std::make_shared<Job>();
    }
    job->is_asked = true;
    if (job->state == State::waiting) {
      job->request = request;
      urgent_.push_back(job);
    }
  }
  work_.notify_all();
  changed_.wait(lock, [&] {
    return job->state == State::done || !any_works() || (only != nullptr && !only->works);
  });
  if (job->state != State::done) {
    std::rethrow_exception((only != nullptr ? only : members_.front().get())->error);
  }
  if (job->error) std::rethrow_exception(job->error);
  return std::move(job->trial);
}

Usage EvaluatorPool::usage() const {
  const std::lock_guard lock(mutex_);
  Usage sum;
  for (const auto& member : members_) {
    sum.busy_s += member->usage.busy_s / static_cast<double>(members_.size());
    sum.compile_s += member->usage.compile_s;
    sum.peak_host_bytes += member->usage.peak_host_bytes;
  }
  return sum;
}

}  // namespace moetune
