#include "measure/nvml.hpp"

#include <dlfcn.h>
#include <fmt/format.h>

#include <utility>

namespace moetune {
namespace {

// The part of nvml.h that is used here: toolkits made of NVIDIA's wheels lack that header.
using Device = void*;
constexpr int kSuccess = 0;
constexpr int kSmClock = 1;
// Reasons for which a clock is below what power and settings allow. SwPowerCap (4) and SyncBoost
// (16) are not among them.
constexpr unsigned long long kHwSlowdown = 0x08;
constexpr unsigned long long kSwThermalSlowdown = 0x20;
constexpr unsigned long long kHwThermalSlowdown = 0x40;
constexpr unsigned long long kHwPowerBrakeSlowdown = 0x80;
constexpr unsigned long long kSlowed =
    kHwSlowdown | kSwThermalSlowdown | kHwThermalSlowdown | kHwPowerBrakeSlowdown;

}  // namespace

struct Nvml::Library {
  explicit Library(void* opened) : handle(opened) {}
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;
  ~Library() {
    if (is_initialised) shutdown();
    ::dlclose(handle);
  }

  // False when the library lacks it.
  template <typename Function>
  bool bind(const char* name, Function& function) const {
    function = reinterpret_cast<Function>(::dlsym(handle, name));
    return function != nullptr;
  }

  void* handle;
  bool is_initialised = false;
  int (*init)() = nullptr;
  int (*shutdown)() = nullptr;
  const char* (*error_string)(int) = nullptr;
  int (*by_pci_bus_id)(const char*, Device*) = nullptr;
  int (*clock_info)(Device, int, unsigned*) = nullptr;
  // These two may be null.
  int (*throttle_reasons)(Device, unsigned long long*) = nullptr;
  int (*total_energy)(Device, unsigned long long*) = nullptr;
};

Nvml::Nvml(std::unique_ptr<Library> library, void* device)
    : library_(std::move(library)), device_(device) {}

Nvml::~Nvml() = default;

std::unique_ptr<Nvml> Nvml::open(const std::string& pci_bus_id, std::string& why,
                                 const char* library) {
  void* handle = ::dlopen(library, RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const char* message = ::dlerror();
    why = fmt::format("cannot load NVML ({})", message != nullptr ? message : library);
    return nullptr;
  }
  auto nvml = std::make_unique<Library>(handle);
  const bool is_whole = nvml->bind("nvmlInit_v2", nvml->init) &&
                        nvml->bind("nvmlShutdown", nvml->shutdown) &&
                        nvml->bind("nvmlErrorString", nvml->error_string) &&
                        nvml->bind("nvmlDeviceGetHandleByPciBusId_v2", nvml->by_pci_bus_id) &&
                        nvml->bind("nvmlDeviceGetClockInfo", nvml->clock_info);
  if (!is_whole) {
    why = fmt::format("{} lacks functions of NVML; its driver is too old", library);
    return nullptr;
  }
  // The second is the name that drivers before 535 know.
  if (!nvml->bind("nvmlDeviceGetCurrentClocksEventReasons", nvml->throttle_reasons))
    nvml->bind("nvmlDeviceGetCurrentClocksThrottleReasons", nvml->throttle_reasons);
  nvml->bind("nvmlDeviceGetTotalEnergyConsumption", nvml->total_energy);

  int status = nvml->init();
  nvml->is_initialised = status == kSuccess;
  Device device = nullptr;
  if (status == kSuccess) status = nvml->by_pci_bus_id(pci_bus_id.c_str(), &device);
  if (status != kSuccess) {
    why = fmt::format("NVML does not give GPU {}: {}", pci_bus_id, nvml->error_string(status));
    return nullptr;
  }
  return std::unique_ptr<Nvml>(new Nvml(std::move(nvml), device));
}

std::optional<ClockReading> Nvml::clock() const {
  unsigned mhz = 0;
  if (library_->clock_info(device_, kSmClock, &mhz) != kSuccess || mhz == 0) return {};
  ClockReading reading{static_cast<int>(mhz), false};
  unsigned long long reasons = 0;
  if (library_->throttle_reasons != nullptr &&
      library_->throttle_reasons(device_, &reasons) == kSuccess) {
    reading.is_slowed = (reasons & kSlowed) != 0;
  }
  return reading;
}

std::optional<double> Nvml::energy_mj() const {
  unsigned long long mj = 0;
  if (library_->total_energy == nullptr || library_->total_energy(device_, &mj) != kSuccess)
    return {};
  return static_cast<double>(mj);
}

}  // namespace moetune
