// Ctrl-C as a wish to stop, not as an end.
#pragma once

#include <atomic>
#include <thread>

namespace moetune {

// From its construction on, the first SIGINT or SIGTERM only sets requested() and says so; a second
// one ends the process as the signal does by default. Make it before other threads: they inherit
// the blocked signals.
class InterruptWatch {
 public:
  InterruptWatch();
  bool requested() const { return requested_; }

 private:
  std::atomic<bool> requested_ = false;
  std::jthread thread_;
};

}  // namespace moetune
