// What NVIDIA's management library says of a GPU while it works. The library comes with the driver
// and is loaded at run time; without it there is no clock check and no energy.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "measure/sampling.hpp"

namespace moetune {

class Nvml {
 public:
  // `pci_bus_id` as CUDA writes it, "0000:1b:00.0": ordinals differ where CUDA_VISIBLE_DEVICES is
  // set. Null when the library or the GPU cannot be had; `why` then says so. `library` is a file
  // name for dlopen.
  static std::unique_ptr<Nvml> open(const std::string& pci_bus_id, std::string& why,
                                    const char* library = "libnvidia-ml.so.1");
  ~Nvml();
  Nvml(const Nvml&) = delete;
  Nvml& operator=(const Nvml&) = delete;

  // Takes tens of microseconds to milliseconds. Nothing where this GPU or driver does not say.
  std::optional<ClockReading> clock() const;
  // Since the driver was loaded, millijoules. Nothing where this GPU has no such counter.
  std::optional<double> energy_mj() const;

 private:
  struct Library;
  Nvml(std::unique_ptr<Library> library, void* device);

  std::unique_ptr<Library> library_;
  void* device_;  // the library's handle; not owned
};

}  // namespace moetune
