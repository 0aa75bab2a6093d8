#include "cli/problem_options.hpp"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <charconv>

#include "core/error.hpp"
#include "core/models.hpp"
#include "cuda/device.hpp"

namespace moetune {
namespace {

constexpr std::string_view kOfflinePrefix = "offline:";

Error no_such_gpu(const std::string& text, const std::vector<Gpu>& present) {
  std::string names;
  for (const Gpu& gpu : present) names += (names.empty() ? "only " : ", ") + gpu.name;
  return Error(ErrorKind::device,
               fmt::format("--device {}: this machine has {}; use --device offline:NAME to work "
                           "without the GPU",
                           text, names.empty() ? "no usable GPU" : names));
}

}  // namespace

CLI::Validator integer_from(std::int64_t least) {
  const auto check = [least](const std::string& text) -> std::string {
    std::int64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error == std::errc() && end == text.data() + text.size() && value >= least) return "";
    return fmt::format("'{}' is not an integer of at least {} below 2^63", text, least);
  };
  return CLI::Validator(check, "");
}

void ProblemOptions::add_to(CLI::App& command) {
  const std::string group = "Layer";
  command
      .add_option("--model", model,
                  "Shipped name, model file, or Hugging Face config.json or its folder")
      ->group(group);
  command
      .add_option("--shape", shape,
                  "Experts, experts a token, hidden size, intermediate size, instead of --model")
      ->type_name("E,K,H,I")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(integer_from(1))
      ->group(group);
  command.add_option("--tp", tp, "GPUs that share each expert: divides I")
      ->capture_default_str()
      ->check(integer_from(1))
      ->group(group);
  command.add_option("--ep", ep, "GPUs that share the experts: divides E")
      ->capture_default_str()
      ->check(integer_from(1))
      ->group(group);
  command.add_option("--dtype", dtype, "bf16, fp8_block or fp8_tensor")
      ->capture_default_str()
      ->group(group);
  command.add_option("--routing", routing, "uniform, zipf:EXPONENT, hot:NUM_EXPERTS or file:PATH")
      ->capture_default_str()
      ->group(group);
  command.add_option("--seed", seed, "Of inputs, routings and random choices")
      ->capture_default_str()
      ->check(integer_from(0))
      ->group(group);
}

Problem ProblemOptions::make(std::int64_t num_tokens) const {
  Problem problem;
  if (!shape.empty()) {
    if (!model.empty())
      throw Error(ErrorKind::usage, "--model and --shape both name the layer: leave one out");
    if (shape.size() != 4) {
      throw Error(ErrorKind::usage,
                  fmt::format("--shape takes four sizes E,K,H,I, not {}", shape.size()));
    }
    problem.shape = {"custom", shape[0], shape[1], shape[2], shape[3]};
  } else if (!model.empty()) {
    problem.shape = load_model(model);
  } else {
    throw Error(ErrorKind::usage,
                "no layer given: use --model NAME (`moe-tune models` lists "
                "them) or --shape E,K,H,I");
  }
  problem.dtype = parse_dtype(dtype);
  problem.num_tokens = num_tokens;
  problem.routing = parse_routing(routing);
  problem.seed = seed;
  problem.shape = shard(problem.shape, tp, ep);
  check(problem);
  return problem;
}

DeviceChoice choose_device(const std::string& text) {
  if (text.starts_with(kOfflinePrefix))
    return {-1, known_gpu(std::string_view(text).substr(kOfflinePrefix.size()))};
  const std::vector<Gpu> present = list_gpus();
  if (text == "auto") {
    if (!present.empty()) return {present.front().ordinal, present.front()};
    DeviceChoice offline{-1, known_gpu("h200")};
    spdlog::info("no usable GPU here: working offline for {}, nothing is measured",
                 offline.gpu.name);
    return offline;
  }
  int ordinal = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), ordinal);
  if (error == std::errc() && end == text.data() + text.size() && ordinal >= 0) {
    for (const Gpu& gpu : present)
      if (gpu.ordinal == ordinal) return {ordinal, gpu};
    throw no_such_gpu(text, present);
  }
  for (const Gpu& gpu : present)
    if (text == gpu.name || text == file_name(gpu)) return {gpu.ordinal, gpu};
  const std::string name = known_gpu(text).name;  // throws, with the nearest, for an unknown one
  for (const Gpu& gpu : present)
    if (name == gpu.name) return {gpu.ordinal, gpu};
  throw no_such_gpu(text, present);
}

std::vector<DeviceChoice> choose_devices(const std::string& text) {
  if (text != "all") return {choose_device(text)};
  std::vector<DeviceChoice> devices;
  for (const Gpu& gpu : list_gpus()) {
    if (devices.empty() || gpu.name == devices.front().gpu.name) {
      devices.push_back({gpu.ordinal, gpu});
    } else {
      spdlog::warn("GPU {} is left out: it is an {}, and a table is for one kind of GPU",
                   gpu.ordinal, gpu.name);
    }
  }
  if (devices.empty()) {
    throw Error(ErrorKind::device,
                fmt::format("--device all: no usable GPU here ({}); offline work needs --device "
                            "offline:NAME",
                            why_no_gpu()));
  }
  return devices;
}

CLI::Option* add_token_counts(CLI::App& command, std::vector<std::int64_t>& counts) {
  const auto sorted = [&counts](const std::vector<std::int64_t>& given) {
    counts = given;
    std::sort(counts.begin(), counts.end());
    counts.erase(std::unique(counts.begin(), counts.end()), counts.end());
  };
  return command
      .add_option_function<std::vector<std::int64_t>>("--tokens", sorted,
                                                      "Tokens in a batch, a list")
      ->default_str(fmt::format("{}", fmt::join(counts, ",")))
      ->type_name("T,...")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(integer_from(1));
}

}  // namespace moetune
