// A child process at the other end of a socket.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

namespace moetune {

// Where the child finds its end of the socket. Not stdout: libraries write there.
inline constexpr int kChildSocket = 3;

class ChildProcess {
 public:
  static constexpr int kGraceMs = 2000;

  // Starts `argv` (argv[0] is the path of the program). Its stdout goes to this process's stderr.
  // It is in a process group of its own and ignores SIGINT, so that Ctrl-C is the parent's to
  // handle, and it is killed when the thread that started it ends. Throws Error(device).
  explicit ChildProcess(const std::vector<std::string>& argv);
  ~ChildProcess();  // finish(kGraceMs)
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  int socket() const { return socket_; }
  // Closes the socket, which asks the child to end; kills it when it has not within `grace_ms`.
  // Returns how it ended: "died of signal 11 (Segmentation fault)", "exited with code 3".
  std::string finish(int grace_ms);

 private:
  std::string program_;
  pid_t pid_ = -1;
  int socket_ = -1;
  std::string end_;
};

}  // namespace moetune
