#include "core/error.hpp"

namespace moetune {

int exit_code(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::usage:
    case ErrorKind::input:
    case ErrorKind::io:
      return 2;
    case ErrorKind::device:
      return 3;
    case ErrorKind::failed:
      return 1;
  }
  return 1;
}

}  // namespace moetune
