// Full grids are kept compressed: a hundred thousand trials are a tenth of their size then.
#pragma once

#include <string>

namespace moetune {

// The whole file, uncompressed where its name ends in .gz. Throws Error(input) with the
// path and the reason, also for a torn or damaged one.
std::string read_maybe_gzip(const std::string& path);

}  // namespace moetune
