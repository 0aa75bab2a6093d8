#include <doctest/doctest.h>

#include <limits>

#include "report/fp8_effect.hpp"
#include "report/sensitivity.hpp"
#include "tests/report_trials.hpp"

using namespace moetune;

namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

SearchSpace space() {
  SearchSpace space;
  space.parameters = {{"BLOCK_SIZE_M", {16, 32, 64, 128}, 64, ""}, {"FP8", {0, 1}, 0, ""}};
  space.constraints = {{"big", [](const Point& p) -> std::optional<std::string> {
                          if (p.at("BLOCK_SIZE_M") < 128) return std::nullopt;
                          return "too big";
                        }}};
  return space;
}

}  // namespace

TEST_CASE("sensitivity: effects in percent against the start, with the range") {
  const std::vector<Trial> trials = {
      timed(Stage::gemm1, 8, point(64), 10), timed(Stage::gemm1, 8, point(16), 15),
      timed(Stage::gemm1, 8, point(32), 8),  timed(Stage::gemm1, 8, point(64, 1), 9.5),
      timed(Stage::gemm1, 4, point(32), 1),  timed(Stage::gemm2, 8, point(32), 1)};
  const auto result =
      sensitivity(trials, Stage::gemm1, 8, space(), {"gemm1", "portable", point(64)});
  CHECK(result.start_us == 10);
  REQUIRE(result.parameters.size() == 2);
  CHECK(result.parameters[0].range_percent == doctest::Approx(70));
  CHECK(result.parameters[0].values[0].effect_percent == doctest::Approx(50));
  CHECK_FALSE(result.parameters[0].values[3].legal);
  CHECK(sensitivity_text(result) ==
        R"(sensitivity of gemm1 at 8 tokens around portable M64: 10.0 us
effect: time against the start point's, + is slower; range: largest minus smallest
parameter     range  value  time us  effect
BLOCK_SIZE_M  70.0%     16     15.0  +50.0%
                        32      8.0  -20.0%
                        64     10.0   +0.0%  start
                       128        -       -  illegal: big
FP8            5.0%      0     10.0   +0.0%  start
                         1      9.5   -5.0%
)");
  const auto json = sensitivity_json(result);
  CHECK(json["parameters"][0]["range_percent"].get<double>() == doctest::Approx(70));
  CHECK(json["parameters"][0]["values"][1]["effect_percent"].get<double>() == doctest::Approx(-20));
  CHECK(json["parameters"][0]["values"][3]["legal"] == false);
  CHECK(json["parameters"][0]["values"][3]["time_us"].is_null());
}

TEST_CASE("sensitivity: values without a time say why, and take no part in the range") {
  Trial screened = timed(Stage::gemm1, 1, point(16), 99);
  screened.screened_out = true;
  const std::vector<Trial> trials = {timed(Stage::gemm1, 1, point(64), 10), screened,
                                     bad(TrialStatus::rejected, point(32), "registers", "300")};
  const auto result =
      sensitivity(trials, Stage::gemm1, 1, space(), {"gemm1", "portable", point(64)});
  const auto& values = result.parameters[0].values;
  CHECK(values[0].note == "stopped early: clearly slower");
  CHECK(values[1].note == "rejected: registers");
  CHECK(result.parameters[0].range_percent == 0);
  CHECK(result.parameters[1].values[1].note == "not tried");
}

TEST_CASE("sensitivity: a start without a time leaves the effects unknown") {
  const std::vector<Trial> trials = {bad(TrialStatus::wrong_result, point(64), "", "nan"),
                                     timed(Stage::gemm1, 1, point(32), 9, Source::predicted)};
  const auto result =
      sensitivity(trials, Stage::gemm1, 1, space(), {"gemm1", "portable", point(64)});
  CHECK(result.start_us == 0);
  const std::string text = sensitivity_text(result);
  CHECK(text.find("at 1 token around") != std::string::npos);
  CHECK(text.find("no effect is known") != std::string::npos);
  CHECK(text.find("9.0 predicted       -\n") != std::string::npos);
  CHECK(sensitivity_json(result)["parameters"][0]["range_percent"].is_null());
}

TEST_CASE("fp8 effect: the fastest of each side, in time and in error") {
  std::vector<Trial> trials = {timed(Stage::gemm1, 8, point(64, 0), 12),
                               timed(Stage::gemm1, 8, point(32, 0), 10),
                               timed(Stage::gemm1, 8, point(16, 1), 5),
                               timed(Stage::gemm2, 8, point(16, 0), 7, Source::predicted)};
  trials[2].rel_err = 0.021;
  trials[2].quantisation_err = 0.043;
  trials.push_back(timed(Stage::gemm1, 8, point(16, 1), kNan));
  const auto effects = fp8_effects(trials);
  CHECK(fp8_text(effects) ==
        R"(effect of FP8: the fastest bf16 plan against the fastest with FP8=1
rel_err: against the reference on the same inputs, quantised for fp8; fp8 against bf16: what quantising itself costs
stage  tokens        bf16 us  fp8 us  speedup  bf16 rel_err  fp8 rel_err  fp8 against bf16
gemm1       8           10.0     5.0    2.00x       0.00300      0.02100           0.04300
gemm2       8  7.0 predicted       -        -       0.00300            -                 -
predicted: from a model of bytes, flops and waves, not a measurement
)");
  const auto json = fp8_json(effects);
  CHECK(json[0]["speedup"] == 2.0);
  CHECK(json[0]["fp8"]["rel_err"] == 0.021);
  CHECK(json[0]["fp8"]["quantisation_err"] == 0.043);
  CHECK(json[1]["fp8"].is_null());
  CHECK(json[1]["speedup"].is_null());
}

TEST_CASE("fp8 effect: a layer with fp8 in one of its GEMMs counts as fp8") {
  Trial mixed = timed(Stage::layer, 1, point(64), 5);
  mixed.plan = {{{"gemm1", "portable", point(64, 0)}, {"gemm2", "portable", point(64, 1)}}};
  const auto effects = fp8_effects(std::vector<Trial>{mixed});
  REQUIRE(effects.size() == 1);
  CHECK(effects[0].fp8);
  CHECK_FALSE(effects[0].bf16);
  CHECK(fp8_effects({}).empty());
}
