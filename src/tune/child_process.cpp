#include "tune/child_process.hpp"

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
[[noreturn]] void become_child(int socket, pid_t parent, char* const* argv) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(0);  // the parent ended before the line above
  setpgid(0, 0);
  signal(SIGINT, SIG_IGN);
  signal(SIGTTOU, SIG_IGN);  // a background group may still log to the terminal
  dup2(STDERR_FILENO, STDOUT_FILENO);
  // dup2 onto itself would keep close-on-exec.
  if (socket == kChildSocket) {
    fcntl(socket, F_SETFD, 0);
  } else {
    dup2(socket, kChildSocket);
  }
  // Journals and locks of the parent must not live on in a child.
  close_range(kChildSocket + 1, ~0U, 0);
  execv(argv[0], argv);
  _exit(kCannotExecute);
}

std::string describe_end(int status, const std::string& program) {
  if (WIFSIGNALED(status))
    return fmt::format("died of signal {} ({})", WTERMSIG(status), strsignal(WTERMSIG(status)));
  if (WEXITSTATUS(status) == kCannotExecute) return fmt::format("cannot execute {}", program);
  return fmt::format("exited with code {}", WEXITSTATUS(status));
}

}  // namespace

ChildProcess::ChildProcess(const std::vector<std::string>& argv) : program_(argv.at(0)) {
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
  if (pid_ == 0) become_child(ends[1], parent, arguments.data());
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

std::string ChildProcess::finish(int grace_ms) {
  if (pid_ < 0) return end_;
  close(socket_);
  int status = 0;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(grace_ms);
  while (waitpid(pid_, &status, WNOHANG) == 0) {
    if (std::chrono::steady_clock::now() >= deadline) {
      kill(pid_, SIGKILL);
      while (waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
      }
      break;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  pid_ = -1;
  end_ = describe_end(status, program_);
  return end_;
}

}  // namespace moetune
