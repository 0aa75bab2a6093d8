#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "cli/command.hpp"
#include "core/gpu.hpp"
#include "cuda/device.hpp"
#include "report/text_table.hpp"

namespace moetune {
namespace {

struct Listed {
  std::string device;  // what --device takes
  Gpu gpu;
};

std::vector<Listed> list_devices() {
  std::vector<Listed> devices;
  for (const Gpu& gpu : list_gpus()) devices.push_back({std::to_string(gpu.ordinal), gpu});
  for (const auto& [name, gpu] : known_gpus()) devices.push_back({"offline:" + name, gpu});
  return devices;
}

nlohmann::ordered_json devices_json(const std::vector<Listed>& devices) {
  auto json = nlohmann::ordered_json::array();
  for (const auto& [device, gpu] : devices) {
    json.push_back({{"device", device},
                    {"name", gpu.name},
                    {"offline", gpu.offline},
                    {"arch", arch_name(gpu)},
                    {"num_sms", gpu.num_sms},
                    {"smem_per_block", gpu.smem_per_block},
                    {"smem_per_sm", gpu.smem_per_sm},
                    {"l2_bytes", gpu.l2_bytes},
                    {"memory_bytes", gpu.memory_bytes},
                    {"read_gbps", gpu.read_gbps},
                    {"bf16_tflops", gpu.bf16_tflops},
                    {"fp8_tflops", gpu.fp8_tflops},
                    {"driver", gpu.driver}});
  }
  return json;
}

std::string rate(double value) {
  return value > 0 ? fmt::format("{:.0f}", value) : "-";
}

std::string devices_text(const std::vector<Listed>& devices) {
  TextTable table({"<--device", "<name", "<arch", "SMs", "smem KiB a block", "L2 MiB", "memory GiB",
                   "read GB/s", "bf16 TFLOP/s", "fp8 TFLOP/s"});
  for (const auto& [device, gpu] : devices) {
    table.add({device, gpu.name, arch_name(gpu), std::to_string(gpu.num_sms),
               std::to_string(gpu.smem_per_block >> 10), std::to_string(gpu.l2_bytes >> 20),
               fmt::format("{:.0f}", static_cast<double>(gpu.memory_bytes) / (1 << 30)),
               rate(gpu.read_gbps), rate(gpu.bf16_tflops), rate(gpu.fp8_tflops)});
  }
  std::string text = table.text();
  if (devices.front().gpu.offline) {
    text +=
        fmt::format("\nNo usable GPU here ({}): --device auto is offline:h200.\n", why_no_gpu());
  }
  return text;
}

}  // namespace

void add_devices(CLI::App& app, Run& run) {
  CLI::App* command =
      app.add_subcommand("devices", "List GPUs: those here, and those known for offline use");
  command->footer(
      "Example:\n  moe-tune devices --json\n\nRates are achievable ones: measured for the H200, "
      "scaled from data sheets for the others.");
  CLI::Option* json = command->add_flag("--json")->description("Print JSON");
  command->callback([&run, json] {
    run = [as_json = json->count() > 0] {
      const std::vector<Listed> devices = list_devices();
      fmt::print("{}", as_json ? devices_json(devices).dump(2) + "\n" : devices_text(devices));
      return 0;
    };
  });
}

}  // namespace moetune
