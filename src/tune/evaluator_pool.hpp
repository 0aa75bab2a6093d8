// One or more evaluators of the same kind of GPU as one: first looks are measured ahead and shared
// out, winners are compared on one GPU.
#pragma once

#include <array>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "tune/evaluator.hpp"

namespace moetune {

// Whoever searches asks for one trial at a time, but announces by prefetch() what it will ask next.
// The pool therefore measures the announced looks ahead, all members at once, and has the answer
// when it is asked for. What it must not share out it does not: what is compared with a few per
// cent at stake, thorough requests and all layers of one token count, goes to the same member, the
// first that still works. Inputs and references of another token count take a GPU long to make, so
// looks of one to come are left to the others while that member is at the finals.
//
// Each member lives in a thread of its own. One that is lost (its evaluate() throws Error(device))
// hands what it had to the others; the search goes on while any is left, unless the lost one holds
// finalists of the token count at hand.
class EvaluatorPool : public Evaluator {
 public:
  using Make = std::function<std::unique_ptr<Evaluator>()>;

  // Calls each in its own thread. One that throws is left out with a warning; when all do, the
  // first's error is thrown. Throws Error(device) when the GPUs or compilers are not all the same.
  explicit EvaluatorPool(const std::vector<Make>& makers);
  ~EvaluatorPool() override;  // after the trials in flight

  const Gpu& gpu() const override { return members_.front()->gpu; }
  std::string nvrtc_version() const override { return members_.front()->nvrtc_version; }
  void prefetch(std::span<const Request> requests) override;
  Trial evaluate(const Request& request) override;
  Usage usage() const override;  // busy: of a GPU, on average; the rest: of all

  std::size_t num_members() const { return members_.size(); }

 private:
  struct Member;
  enum class State { waiting, running, done };
  struct Job {
    Request request;
    State state = State::waiting;
    bool is_look = true;       // any member may take it
    bool is_asked = false;     // somebody waits for it
    bool is_dropped = false;   // nobody will ask for it
    Member* member = nullptr;  // a look's: where its kernel is compiled
    Trial trial;
    std::exception_ptr error;
  };
  using JobPtr = std::shared_ptr<Job>;
  struct Member {
    bool is_open = false;  // set once; false with an error: it could not be opened
    bool works = true;
    std::exception_ptr error;
    Gpu gpu;
    std::string nvrtc_version;
    Usage usage;
    std::deque<JobPtr> looks;      // announced and given to this member, in order
    std::deque<JobPtr> thorough;   // only this member may run them
    std::vector<Request> compile;  // to be passed on by prefetch()
    std::jthread thread;
  };

  void live(Member& member, const Make& make);
  void work(Member& member, Evaluator& evaluator);
  void lose(Member& member, const JobPtr& job);
  // These are called with the mutex held.
  JobPtr pick(Member& member);
  JobPtr pick_look(std::deque<JobPtr>& looks, bool any_count);
  Member* home(std::int64_t num_tokens);
  void drop_looks(Stage stage, std::int64_t num_tokens);
  void forget(std::map<std::string, JobPtr>::iterator look);
  bool any_works() const;

  mutable std::mutex mutex_;
  std::condition_variable work_;     // something to do, or the end
  std::condition_variable changed_;  // a job is done, a member opened or lost
  std::vector<std::unique_ptr<Member>> members_;
  std::map<std::string, JobPtr> looks_;  // announced, not yet asked for
  std::deque<JobPtr> urgent_;            // looks that are waited for; before all others
  std::size_t num_ahead_ = 0;            // looks running or done that nobody has asked for
  std::size_t next_member_ = 0;
  Stage stage_ = Stage::layer;             // of the last look asked for
  std::int64_t num_tokens_ = 0;            // of the last request; 0: none yet
  bool in_finals_ = false;                 // the last request was thorough
  std::array<double, 2> stop_above_us_{};  // [is_fp8]
  std::map<std::int64_t, Member*> homes_;  // by token count
  bool is_ending_ = false;
};

}  // namespace moetune
