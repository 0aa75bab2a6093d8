// What a cubin says about its kernels, read from the ELF image itself: no GPU, no tools.
#pragma once

#include <string_view>

#include "jit/compiler.hpp"

namespace moetune {

// `kernel` is the symbol's (lowered) name. Reads nothing outside `image`, whatever it holds; throws
// Error(input) when the image is truncated, malformed, or does not define the kernel.
Resources read_resources(std::string_view image, std::string_view kernel);

}  // namespace moetune
