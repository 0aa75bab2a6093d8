// What each kernel of a layer call must move and compute at least, as its program says, for the
// rows that a routing gives the experts. Pure functions.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "program/program.hpp"

namespace moetune {

struct KernelWork {
  std::string step;    // "sort, quantise", "GEMM1", ...
  std::string kernel;  // the function's name, or how it begins
  double bytes = 0;    // each of its inputs read and outputs written once, from and to memory
  double flops = 0;    // of products
  bool fp8 = false;    // products of e4m3
  // GEMMs: rows of its tiles over rows that there are, 1 or more.
  double padding = 0;
  // Persistent GEMMs: tiles over what all rounds of all blocks could take, 0..1; else 0.
  double rounds_full = 0;
};

// `expert_rows`: how many slots each expert has. Sizes of the tile list and of fp8_tensor's scales
// are too small to count.
std::vector<KernelWork> kernel_works(const LayerProgram& program,
                                     std::span<const std::int64_t> expert_rows);

}  // namespace moetune
