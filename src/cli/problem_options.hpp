// The options that say which layer, shared by search, bench, space and compile.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>
#include <vector>

#include "core/gpu.hpp"
#include "core/problem.hpp"

namespace moetune {

// For Option::check. CLI11's own put their range into the help and take -1 for an unsigned number.
CLI::Validator integer_from(std::int64_t least);

struct ProblemOptions {
  std::string model;                // --model NAME|PATH
  std::vector<std::int64_t> shape;  // --shape E,K,H,I
  std::int64_t tp = 1;              // --tp N divides I
  std::int64_t ep = 1;              // --ep N divides E
  std::string dtype = "bf16";       // --dtype
  std::string routing = "uniform";  // --routing
  std::uint64_t seed = 0;           // --seed

  void add_to(CLI::App& command);
  Problem make(std::int64_t num_tokens) const;  // checked; throws Error
};

// --device auto|N|NVIDIA name|offline:NAME
struct DeviceChoice {
  int ordinal = -1;  // CUDA device, or -1 offline
  Gpu gpu;           // gpu.offline says which
};
// auto: the first GPU if there is one, else offline:h200. Throws Error(device) for an absent GPU.
DeviceChoice choose_device(const std::string& text);
// The same, and `all`: every usable GPU of the first one's kind, with a warning about others.
std::vector<DeviceChoice> choose_devices(const std::string& text);

// Adds --tokens T,...: fills `counts` (its present value is the default), sorted, without repeats,
// each at least 1. `counts` must outlive parsing.
CLI::Option* add_token_counts(CLI::App& command, std::vector<std::int64_t>& counts);

}  // namespace moetune
