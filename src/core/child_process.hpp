// A child process at the other end of a socket.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

namespace moetune {

// Where the child finds its end of the socket. Not stdout: libraries write there.
inline constexpr int kChildSocket = 3;

// This program, whatever it was started as.
inline constexpr const char* kOwnProgram = "/proc/self/exe";

// Which of the child's descriptors are its end of the socket.
enum class ChildEnd {
  descriptor,       // kChildSocket; its stdout goes to this process's stderr
  standard_streams  // stdin and stdout: what a launcher such as srun passes on
};

class ChildProcess {
 public:
  static constexpr int kGraceMs = 2000;

  // Starts `argv` (argv[0] is the path of the program). It is in a process group of its own and
  // ignores SIGINT, so that Ctrl-C is the parent's to handle, and it is killed when the thread that
  // started it ends. Throws Error(device).
  explicit ChildProcess(const std::vector<std::string>& argv,
                        ChildEnd child_end = ChildEnd::descriptor);
  ~ChildProcess();  // finish(kGraceMs)
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  int socket() const { return socket_; }
  // Closes the socket, which asks the child to end; kills it when it has not within `grace_ms`, a
  // launcher after a SIGTERM and kGraceMs more, in which it may end what it launched. Returns how
  // it ended: "died of signal 11 (Segmentation fault)", "exited with code 3".
  std::string finish(int grace_ms);
  // Whether it has ended by a SIGKILL or SIGTERM that did not come from here.
  bool was_killed() const { return was_killed_; }

 private:
  bool ends_within(int grace_ms, int& status) const;

  std::string program_;
  ChildEnd child_end_;
  pid_t pid_ = -1;
  int socket_ = -1;
  std::string end_;
  bool was_killed_ = false;
};

}  // namespace moetune
