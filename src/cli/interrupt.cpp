#include "cli/interrupt.hpp"

#include <spdlog/spdlog.h>

#include <csignal>

namespace moetune {

InterruptWatch::InterruptWatch() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  thread_ = std::jthread([this, signals](const std::stop_token& ended) {
    const timespec wait{.tv_sec = 0, .tv_nsec = 100'000'000};
    while (!ended.stop_requested()) {
      const int signal = sigtimedwait(&signals, nullptr, &wait);
      if (signal < 0) continue;
      if (requested_.exchange(true)) {
        std::signal(signal, SIG_DFL);
        pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);
        std::raise(signal);
      }
      spdlog::warn("stopping after the trial in flight; once more to leave at once");
    }
  });
}

}  // namespace moetune
