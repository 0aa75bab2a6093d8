// Where compiled kernels are kept unless --cache says otherwise.
#pragma once

#include <string>

namespace moetune {

// $XDG_CACHE_HOME/moe-tune, else ~/.cache/moe-tune; "" (no cache) when neither variable holds an
// absolute path.
std::string default_cache_dir();

}  // namespace moetune
