// What NVRTC is given for one kernel source. Private to the module.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/embedded.hpp"
#include "kernels/variant.hpp"

namespace moetune {

// `main` and, in order of first use, the files that it includes by `#include "..."`, directly or
// not, as found in `files`. Nothing else can be included, so this is all that decides the result.
// Empty when `files` has no `main`.
std::vector<EmbeddedFile> included_files(std::string_view main,
                                         std::span<const EmbeddedFile> files);

// The command line for `source`: the common options, the architecture, the source's own.
std::vector<std::string> nvrtc_options(const KernelSource& source, const std::string& arch);

}  // namespace moetune
