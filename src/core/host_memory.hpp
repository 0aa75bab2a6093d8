// What this process takes of the host's memory.
#pragma once

#include <cstdint>

namespace moetune {

// Peak resident memory of this process so far.
std::int64_t peak_host_bytes();

}  // namespace moetune
