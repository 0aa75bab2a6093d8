// What takes and judges samples, without a GPU.
#include <doctest/doctest.h>
#include <stdlib.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "core/error.hpp"
#include "kernels/variant.hpp"
#include "measure/energy.hpp"
#include "measure/nvml.hpp"
#include "measure/sampling.hpp"

using namespace moetune;

namespace {

// A GPU whose n-th block of five samples has the n-th of these clocks; the last one goes on. A
// sample takes 1e6 / MHz microseconds.
struct FakeGpu {
  std::vector<ClockReading> blocks;
  int num_taken = 0;
  int num_reads = 0;

  ClockReading at(int sample) const {
    return blocks[std::min(static_cast<std::size_t>(sample / 5), blocks.size() - 1)];
  }
  Sampler sampler() {
    return {[this] { return 1e6 / at(num_taken++).sm_mhz; },
            [this]() -> std::optional<ClockReading> {
              ++num_reads;
              return at(num_taken - 1);
            }};
  }
  Timing time(TimingOptions options = {}) {
    bool stopped = true;
    const Timing timing = take_samples(options, sampler(), stopped);
    CHECK_FALSE(stopped);
    return timing;
  }
};

// Sets a variable for the fake library until its end.
struct Says {
  Says(const char* name, const char* value) : name_(name) { setenv(name, value, 1); }
  ~Says() { unsetenv(name_); }
  const char* name_;
};

const std::string kGpu = "0000:1b:00.0";

}  // namespace

TEST_CASE("sampling: without a clock every sample counts") {
  int num = 0;
  bool stopped = true;
  const Timing timing = take_samples({}, {[&] { return ++num; }, {}}, stopped);
  CHECK_FALSE(stopped);
  CHECK(num == 20);
  CHECK(timing.num_samples == 20);
  CHECK(timing.median_us == 10.5);
  CHECK(timing.clock_mhz == 0);
  const Timing silent = take_samples({}, {[&] { return 1; }, [] { return std::nullopt; }}, stopped);
  CHECK(silent.num_samples == 20);
  CHECK(silent.clock_mhz == 0);
  CHECK_FALSE(silent.unsteady);
}

TEST_CASE("sampling: a power cap's clock is the truth, however far below the maximum") {
  FakeGpu gpu{{{1980}, {1410}, {1440}, {1400}, {1420}}};
  const Timing timing = gpu.time();
  CHECK(timing.num_samples == 20);
  CHECK(timing.num_discarded == 5);
  CHECK(timing.clock_mhz == 1415);
  CHECK(timing.median_us == doctest::Approx(1e6 / 1415).epsilon(0.01));
  CHECK(timing.p10_us > 1e6 / 1450);
  CHECK_FALSE(timing.unsteady);
}

TEST_CASE("sampling: what heat or the hardware slowed does not count, even at the same clock") {
  FakeGpu gpu{{{1500}, {1500, true}, {1500}, {1500}, {1500}}};
  const Timing timing = gpu.time();
  CHECK(timing.num_samples == 20);
  CHECK(timing.num_discarded == 5);
  CHECK(gpu.num_reads == 5);
}

TEST_CASE("sampling: a GPU that never settles is measured all the same, and that is said") {
  FakeGpu hot{{{1500, true}}};
  const Timing timing = hot.time();
  CHECK(timing.unsteady);
  CHECK(timing.num_samples == 40);
  CHECK(timing.num_discarded == 0);
  CHECK(timing.clock_mhz == 1500);
  CHECK(timing.median_us == doctest::Approx(1e6 / 1500));
  FakeGpu wild{{{1000}, {1200}, {1400}, {1600}, {1800}, {2000}, {2200}, {2400}}};
  CHECK(wild.time().unsteady);
}

TEST_CASE("sampling: a first sample above the limit is the only one") {
  FakeGpu gpu{{{1000}}};
  bool stopped = false;
  const Timing timing = take_samples({.stop_above_us = 999}, gpu.sampler(), stopped);
  CHECK(stopped);
  CHECK(timing.num_samples == 1);
  CHECK(timing.median_us == 1000);
  CHECK(gpu.num_reads == 0);
  CHECK(gpu.time({.stop_above_us = 1000}).num_samples == 20);
}

TEST_CASE("sampling: plans that take turns are compared at the same clock") {
  // Plans of 100, 102 and 110 us; the order of a turn rotates. The clock steps down within the
  // third turn, after its first plan (the last one), and again before the fifth.
  const std::vector<double> times{100, 102, 110};
  const std::vector<std::vector<double>> slowed{
      {1, 1, 1.1, 1.1, 1.3}, {1, 1, 1.1, 1.1, 1.3}, {1, 1, 1.0, 1.1, 1.3}};
  std::vector<std::vector<double>> samples(3);
  for (std::size_t plan = 0; plan < 3; ++plan)
    for (std::size_t turn = 0; turn < 5; ++turn)
      samples[plan].push_back(times[plan] * slowed[plan][turn]);
  std::vector<double> raw, level;
  for (const auto& plan : samples) raw.push_back(summarise(plan).median_us);
  CHECK(raw[2] < raw[1]);  // the slowest looks faster than the second
  level_turns(samples);
  for (const auto& plan : samples) level.push_back(summarise(plan).median_us);
  CHECK(level[1] / level[0] == doctest::Approx(1.02));
  CHECK(level[2] / level[0] == doctest::Approx(1.10));
  CHECK(level[0] >= 100);  // of a clock that it ran at
  CHECK(level[0] <= 110);

  std::vector<std::vector<double>> alone{{10, 11, 12}};
  level_turns(alone);
  CHECK(alone[0] == std::vector<double>{10, 11, 12});
}

TEST_CASE("sampling: the clocks that count are near the median of those not slowed") {
  const auto of = [](const std::vector<ClockReading>& blocks) { return steady(blocks); };
  CHECK(of({{1000}, {1050}, {950}}) == std::vector{true, true, true});
  CHECK(of({{1000}, {1051}, {1000}, {949}, {1000}}) == std::vector{true, false, true, false, true});
  CHECK(of({{1000, true}, {1400}, {1400}}) == std::vector{false, true, true});
  CHECK(of({{1000, true}}) == std::vector{false});
  CHECK(of({}).empty());
}

TEST_CASE("energy: of a run, though the counter moves only now and then") {
  double us = 0;
  int num_runs = 0;
  EnergyMeter meter;
  meter.run = [&] {
    ++num_runs;
    us += 7000;
    return 7000;
  };
  // 600 W, told every 100 ms: 4200 mJ a run.
  meter.read_mj = [&] { return 1e9 + 600e-3 * 1e5 * std::floor(us / 1e5); };
  const auto mj = energy_of_run_mj(meter);
  REQUIRE(mj);
  CHECK(*mj == doctest::Approx(4200).epsilon(0.02));
  CHECK(us >= 0.5e6);
  CHECK(us < 0.9e6);
}

TEST_CASE("energy: a counter that fails or stands still gives nothing, in bounded time") {
  int num_runs = 0;
  EnergyMeter meter;
  meter.run = [&] {
    ++num_runs;
    return 10'000;
  };
  meter.read_mj = [] { return std::nullopt; };
  CHECK_FALSE(energy_of_run_mj(meter));
  CHECK(num_runs == 0);
  meter.read_mj = [] { return 5.0; };
  CHECK_FALSE(energy_of_run_mj(meter));
  CHECK(num_runs == 200);
  num_runs = 0;
  meter.read_mj = [&] { return num_runs < 3 ? std::optional(5.0 + num_runs) : std::nullopt; };
  CHECK_FALSE(energy_of_run_mj(meter));
  CHECK(num_runs == 3);
}

TEST_CASE("nvml: without the library, or without the GPU, it says why there is none") {
  std::string why;
  CHECK(Nvml::open(kGpu, why, "libno-such-nvml.so.1") == nullptr);
  CHECK(why.find("libno-such-nvml.so.1") != std::string::npos);
  CHECK(Nvml::open(kGpu, why, "libz.so.1") == nullptr);
  CHECK(why.find("libz.so.1 lacks") != std::string::npos);
  CHECK(Nvml::open("0000:2b:00.0", why, MOETUNE_FAKE_NVML) == nullptr);
  CHECK(why == "NVML does not give GPU 0000:2b:00.0: no luck");
  const Says fails("FAKE_NVML_INIT", "9");
  CHECK(Nvml::open(kGpu, why, MOETUNE_FAKE_NVML) == nullptr);
}

TEST_CASE("nvml: the clock, what slows it, and the energy") {
  std::string why;
  const auto nvml = Nvml::open(kGpu, why, MOETUNE_FAKE_NVML);
  REQUIRE(nvml);
  CHECK_FALSE(nvml->clock());  // 0 MHz is no answer
  const Says mhz("FAKE_NVML_MHZ", "1410");
  const Says mj("FAKE_NVML_MJ", "123456789012");
  CHECK(nvml->energy_mj() == 123456789012.0);
  struct Case {
    const char* reasons;
    bool is_slowed;
  };
  // Idle, settings, power cap and sync boost are no defect.
  for (const auto& [reasons, is_slowed] :
       {Case{"0", false}, Case{"0x17", false}, Case{"0x8", true}, Case{"0x20", true},
        Case{"0x44", true}, Case{"0x80", true}}) {
    CAPTURE(reasons);
    const Says because("FAKE_NVML_REASONS", reasons);
    REQUIRE(nvml->clock());
    CHECK(nvml->clock()->sm_mhz == 1410);
    CHECK(nvml->clock()->is_slowed == is_slowed);
  }
  const Says unsupported("FAKE_NVML_STATUS", "3");
  CHECK_FALSE(nvml->clock());
  CHECK_FALSE(nvml->energy_mj());
}
