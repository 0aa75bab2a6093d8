// The one exception type: what went wrong, where, and what to do about it, in one line.
#pragma once

#include <stdexcept>
#include <string>

namespace moetune {

enum class ErrorKind {
  usage,   // an option or argument that makes no sense           -> exit code 2
  input,   // an unreadable, malformed or unfitting file or value -> exit code 2
  io,      // an output that cannot be written                    -> exit code 2
  device,  // no usable GPU, toolkit or memory                    -> exit code 3
  failed   // the work itself fell short                          -> exit code 1
};

class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}
  ErrorKind kind() const noexcept { return kind_; }

 private:
  ErrorKind kind_;
};

// The process exit code documented for `kind`.
int exit_code(ErrorKind kind);

}  // namespace moetune
