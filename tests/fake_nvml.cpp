// Stands in for libnvidia-ml.so.1. What it says is in environment variables: FAKE_NVML_INIT and
// FAKE_NVML_STATUS are NVML's return codes, FAKE_NVML_MHZ, _REASONS and _MJ what a GPU answers.
#include <cstdlib>
#include <cstring>

namespace {

unsigned long long value(const char* name) {
  const char* text = std::getenv(name);
  return text != nullptr ? std::strtoull(text, nullptr, 0) : 0;
}
int status() {
  return static_cast<int>(value("FAKE_NVML_STATUS"));
}
int device = 0;

}  // namespace

extern "C" {

int nvmlInit_v2() {
  return static_cast<int>(value("FAKE_NVML_INIT"));
}
int nvmlShutdown() {
  return 0;
}
const char* nvmlErrorString(int) {
  return "no luck";
}
int nvmlDeviceGetHandleByPciBusId_v2(const char* id, void** handle) {
  if (std::strcmp(id, "0000:1b:00.0") != 0) return 6;  // not found
  *handle = &device;
  return 0;
}
int nvmlDeviceGetClockInfo(void* handle, int type, unsigned* mhz) {
  if (handle != &device || type != 1) return 2;  // invalid argument
  *mhz = static_cast<unsigned>(value("FAKE_NVML_MHZ"));
  return status();
}
int nvmlDeviceGetCurrentClocksThrottleReasons(void*, unsigned long long* reasons) {
  *reasons = value("FAKE_NVML_REASONS");
  return status();
}
int nvmlDeviceGetTotalEnergyConsumption(void*, unsigned long long* mj) {
  *mj = value("FAKE_NVML_MJ");
  return status();
}
}
