// MXFP8's arithmetic on the host, the report, the kernel's compilation, and the command.
#include <doctest/doctest.h>
#include <fmt/format.h>
#include <sys/wait.h>

#include <cmath>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "bench/levels.hpp"
#include "bench/mxfp8.hpp"
#include "core/error.hpp"
#include "core/mxfp8.hpp"
#include "report/mxfp8_report.hpp"

namespace moetune {

TEST_CASE("e4m3: every finite byte is its own nearest value") {
  for (unsigned bits = 0; bits < 256; ++bits) {
    const auto byte = static_cast<std::uint8_t>(bits);
    if ((byte & 0x7f) == 0x7f) {
      CHECK(std::isnan(from_e4m3(byte)));
      continue;
    }
    CHECK(to_e4m3(from_e4m3(byte)) == byte);
  }
}

TEST_CASE("e4m3: known values, ties to even, saturation") {
  CHECK(from_e4m3(0x7e) == 448);
  CHECK(from_e4m3(0x01) == std::ldexp(1.0, -9));
  CHECK(from_e4m3(0x38) == 1);
  CHECK(from_e4m3(0xb8) == -1);
  CHECK(to_e4m3(1e9) == 0x7e);
  CHECK(to_e4m3(-1e9) == 0xfe);
  CHECK(from_e4m3(to_e4m3(1.0625)) == 1);     // between 1 and 1.125: to the even mantissa
  CHECK(from_e4m3(to_e4m3(1.1875)) == 1.25);  // between 1.125 and 1.25
  CHECK(from_e4m3(to_e4m3(1.99)) == 2);       // up into the next binade
  CHECK(to_e4m3(std::ldexp(1.0, -10)) == 0);  // half the least subnormal
  CHECK(to_e4m3(std::ldexp(1.5, -10)) == 1);
}

TEST_CASE("e8m0: the least power of two that does not clip") {
  CHECK(mx_scale(448) == 127);
  CHECK(mx_scale(448.0001) == 128);
  CHECK(mx_scale(256) == 127);
  CHECK(mx_scale(224) == 126);
  CHECK(mx_scale(1) == 119);  // 2^-8: 1 becomes 256
  CHECK(mx_scale(0) == 0);
  CHECK(mx_scale(1e-45) == 0);
  CHECK(mx_scale(3.38e38) == 247);
  for (double amax = 1e-30; amax < 1e30; amax *= 1.37) {
    const double scaled = amax / from_e8m0(mx_scale(amax));
    CHECK(scaled <= 448);
    CHECK(scaled > 224);
  }
}

TEST_CASE(
    "mxfp8: a scale for 32 values; the error of normal numbers is e4m3's, whatever their size") {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  std::vector<float> values(64 * kMxBlock);
  for (std::size_t i = 0; i < values.size(); ++i)
    values[i] = normal(random) * std::ldexp(1.0F, static_cast<int>(i / kMxBlock) - 32);
  const Mxfp8 quantised = quantise_mxfp8(values);
  CHECK(quantised.values.size() == values.size());
  CHECK(quantised.scales.size() == 64);
  CHECK(quantised.scales[40] > quantised.scales[8]);
  // Three mantissa bits: at most 1/16 for a value, about a third of that for the norm.
  CHECK(mxfp8_error(quantised, values) < 0.04);
  CHECK(mxfp8_error(quantised, values) > 0.01);
  const std::vector<float> zeros(kMxBlock);
  CHECK(mxfp8_error(quantise_mxfp8(zeros), zeros) == 0);
  CHECK_THROWS_AS(quantise_mxfp8(std::vector<float>(33)), Error);
}

TEST_CASE("mxfp8 report: bytes, rates and the share of a copy's") {
  BenchRun run;
  run.gpu = known_gpu("h200");
  const Mxfp8Row row{"mixtral-8x7b",      8192, "x", 8192, 4096, {50, 49, 51, 20, 0},
                     {40, 39, 41, 20, 0}, 0.026};
  CHECK(mxfp8_bytes(row) == 8192.0 * 4096 * 3.03125);
  const std::vector<Mxfp8Row> rows = {row};
  const auto json = mxfp8_json(run, rows, {}).at("rows").at(0);
  CHECK(json.at("share_of_copy").get<double>() == doctest::Approx(0.8));
  CHECK(json.at("gbps").get<double>() == doctest::Approx(8192.0 * 4096 * 3.03125 / 50e3));
  CHECK(mxfp8_text(run, rows, {}).find("80.0") != std::string::npos);
}

TEST_CASE("mxfp8 report: products with rates, errors, path and point; a layer has no point") {
  BenchRun run;
  run.gpu = known_gpu("h200");
  Mxfp8Product gemm;
  gemm.model = "mixtral-8x7b";
  gemm.num_tokens = 2048;
  gemm.what = "gemm2";
  gemm.path = "some path";
  gemm.point = "BLOCK_SIZE_M=64";
  gemm.num_points = 12;
  gemm.flops = 3e11;
  gemm.bytes = 2e9;
  gemm.timing.median_us = 1000;
  gemm.rel_err = 0.0017;
  Mxfp8Product layer = gemm;
  layer.what = "layer";
  layer.bf16_err = 0.075;
  const std::vector<Mxfp8Product> products = {gemm, layer};
  const auto json = mxfp8_json(run, {}, products).at("rows");
  CHECK(json.at(0).at("kind") == "mxfp8");
  CHECK(json.at(0).at("tflops").get<double>() == doctest::Approx(300));
  CHECK(json.at(0).at("gbps").get<double>() == doctest::Approx(2000));
  CHECK(json.at(0).at("point") == "BLOCK_SIZE_M=64");
  CHECK(json.at(0).at("bf16_err").is_null());
  CHECK(json.at(1).at("point").is_null());
  CHECK(json.at(1).at("bf16_err") == 0.075);
  const std::string text = mxfp8_text(run, {}, products);
  for (const char* part : {"some path", "300.0", "2000", "0.00170", "0.07500", "BLOCK_SIZE_M=64"})
    CHECK(text.find(part) != std::string::npos);
}

TEST_CASE("mxfp8: the kernel compiles for every architecture that has e4m3, without spilling") {
  for (const char* arch : {"sm_89", "sm_90a", "sm_100a", "sm_120a"}) {
    CAPTURE(arch);
    for (const std::int64_t columns : {4096, 2880}) {  // without and with padded scales
      const Cubin cubin = compile(mxfp8_kernels(columns), arch, embedded_journey());
      CHECK(cubin.error == "");
      for (const CompiledKernel& kernel : cubin.kernels) CHECK(kernel.resources.stack_bytes == 0);
    }
  }
}

TEST_CASE("mxfp8 command: it needs a GPU") {
  const int status = std::system(
      fmt::format("{} bench --mxfp8 --model mixtral-8x7b --device offline:h200 2>/dev/null",
                  MOETUNE_PROGRAM)
          .c_str());
  CHECK((WIFEXITED(status) && WEXITSTATUS(status) == 3));
}

}  // namespace moetune
