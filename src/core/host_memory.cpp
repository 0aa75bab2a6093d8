#include "core/host_memory.hpp"

#include <sys/resource.h>

namespace moetune {

std::int64_t peak_host_bytes() {
  rusage used{};
  getrusage(RUSAGE_SELF, &used);
  return std::int64_t{used.ru_maxrss} * 1024;  // Linux counts in KiB
}

}  // namespace moetune
