#include "core/child_process.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <thread>

#include "core/error.hpp"

namespace moetune {
namespace {

constexpr int kCannotExecute = 127;  // the shell's code for a program that cannot be run

// Between fork and exec: only async-signal-safe calls, since the parent may have threads.
[[noreturn]] void become_child(int socket, ChildEnd child_end, pid_t parent, char* const* argv) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(0);  // the parent ended before the line above
  setpgid(0, 0);
  signal(SIGINT, SIG_IGN);
  signal(SIGTTOU, SIG_IGN);  // a background group may still log to the terminal
  if (child_end == ChildEnd::standard_streams) {
    dup2(socket, STDIN_FILENO);
    dup2(socket, STDOUT_FILENO);
  } else {
    dup2(STDERR_FILENO, STDOUT_FILENO);
    // dup2 onto itself would keep close-on-exec.
    if (socket == kChildSocket) {
      fcntl(socket, F_SETFD, 0);
    } else {
      dup2(socket, kChildSocket);
    }
  }
  // Journals and locks of the parent must not live on in a child.
  close_range(child_end == ChildEnd::standard_streams ? STDERR_FILENO + 1 : kChildSocket + 1, ~0U,
              0);
  execv(argv[0], argv);
  _exit(kCannotExecute);
}

// A launcher's code 127 is about what it was to run, and it has said what.
std::string describe_end(int status, const std::string& program, ChildEnd child_end) {
  if (WIFSIGNALED(status))
    return fmt::format("died of signal {} ({})", WTERMSIG(status), strsignal(WTERMSIG(status)));
  if (child_end == ChildEnd::descriptor && WEXITSTATUS(status) == kCannotExecute)
    return fmt::format("cannot execute {}", program);
  return fmt::format("exited with code {}", WEXITSTATUS(status));
}

}  // namespace

ChildProcess::ChildProcess(const std::vector<std::string>& argv, ChildEnd child_end)
    : program_(argv.at(0)), child_end_(child_end) {
  std::vector<char*> arguments;
  arguments.reserve(argv.size() + 1);
  for (const std::string& argument : argv) arguments.push_back(const_cast<char*>(argument.c_str()));
  arguments.push_back(nullptr);

  int ends[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0)
    throw Error(ErrorKind::device,
                fmt::format("cannot make a socket for the worker: {}", std::strerror(errno)));
  const pid_t parent = getpid();
  pid_ = fork();
  if (pid_ == 0) become_child(ends[1], child_end, parent, arguments.data());
  const int fork_errno = errno;
  close(ends[1]);
  socket_ = ends[0];
  if (pid_ < 0) {
    close(socket_);
    throw Error(ErrorKind::device,
                fmt::format("cannot start the worker: {}", std::strerror(fork_errno)));
  }
}

ChildProcess::~ChildProcess() {
  finish(kGraceMs);
}

bool ChildProcess::ends_within(int grace_ms, int& status) const {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(grace_ms);
  while (waitpid(pid_, &status, WNOHANG) == 0) {
    if (std::chrono::steady_clock::now() >= deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

std::string ChildProcess::finish(int grace_ms) {
  if (pid_ < 0) return end_;
  close(socket_);
  int status = 0;
  bool ended = ends_within(grace_ms, status);
  was_killed_ =
      ended && WIFSIGNALED(status) && (WTERMSIG(status) == SIGKILL || WTERMSIG(status) == SIGTERM);
  if (!ended && child_end_ == ChildEnd::standard_streams) {
    kill(-pid_, SIGTERM);
    ended = ends_within(kGraceMs, status);
  }
  if (!ended) {
    // The group: a launcher may be a script.
    kill(child_end_ == ChildEnd::standard_streams ? -pid_ : pid_, SIGKILL);
    while (waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
    }
  }
  pid_ = -1;
  end_ = describe_end(status, program_, child_end_);
  return end_;
}

}  // namespace moetune
