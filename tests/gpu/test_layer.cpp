// Needs a GPU; skips without one. Small shapes, so that it can run under compute-sanitizer.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "core/error.hpp"
#include "cuda/device.hpp"
#include "lab/loaded_plan.hpp"
#include "lab/reference.hpp"
#include "measure/check.hpp"
#include "measure/nvml.hpp"
#include "search/legal_points.hpp"
#include "tune/evaluator.hpp"

using namespace moetune;

namespace {

Problem small_problem(Dtype dtype, std::int64_t hidden, std::int64_t intermediate) {
  Problem problem;
  problem.shape = {"small", 8, 3, hidden, intermediate};
  problem.dtype = dtype;
  problem.num_tokens = 21;
  problem.seed = 5;
  return problem;
}

template <typename T>
std::vector<T> download(const Buffer& buffer) {
  std::vector<T> host(buffer.size() / sizeof(T));
  buffer.download(host.data(), buffer.size());
  return host;
}

double from_bf16(std::uint16_t bits) {
  const std::uint32_t wide = static_cast<std::uint32_t>(bits) << 16;
  float value = 0;
  std::memcpy(&value, &wide, 4);
  return static_cast<double>(value);
}
double from_e4m3(std::uint8_t bits) {
  const int exponent = bits >> 3 & 15;
  const int mantissa = bits & 7;
  const double magnitude =
      exponent == 0 ? mantissa / 512.0 : std::ldexp(1.0 + mantissa / 8.0, exponent - 7);
  return bits & 0x80 ? -magnitude : magnitude;
}
double round_to_e4m3(double value) {
  const double magnitude = std::min(std::abs(value), 448.0);
  const int exponent = magnitude > 0 ? std::max(-6, std::ilogb(magnitude)) : -6;
  const double step = std::ldexp(1.0, exponent - 3);
  return std::copysign(std::nearbyint(magnitude / step) * step, value);
}

// Rounds each group of `group` values to e4m3 with the scale amax / 448.
void quantise(std::vector<double>& values, std::size_t columns, std::size_t group) {
  for (std::size_t row = 0; row < values.size(); row += columns) {
    for (std::size_t first = row; first < row + columns; first += group) {
      double amax = 0;
      for (std::size_t i = first; i < first + group; ++i) {
        amax = std::max(amax, std::abs(values[i]));
      }
      const double scale = amax > 0 ? amax / 448 : 1;
      for (std::size_t i = first; i < first + group; ++i) {
        values[i] = round_to_e4m3(values[i] / scale) * scale;
      }
    }
  }
}

std::vector<double> dequantise(const Buffer& q, const Buffer& scale, std::size_t columns,
                               std::size_t row_block, std::size_t column_block) {
  const auto bytes = download<std::uint8_t>(q);
  const auto scales = download<float>(scale);
  std::vector<double> values(bytes.size());
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::size_t row = i / columns;
    values[i] =
        from_e4m3(bytes[i]) *
        static_cast<double>(
            scales[row / row_block * (columns / column_block) + i % columns / column_block]);
  }
  return values;
}

std::vector<double> to_double(const Buffer& bf16) {
  std::vector<double> values;
  for (const std::uint16_t bits : download<std::uint16_t>(bf16)) values.push_back(from_bf16(bits));
  return values;
}

// The layer in float64, by its definition.
std::vector<double> layer_in_float64(const Layer& layer, const TokenBatch& batch, bool fp8) {
  const LayerShape& s = batch.problem.shape;
  const auto h = static_cast<std::size_t>(s.hidden_size);
  const auto inter = static_cast<std::size_t>(s.intermediate_size);
  const auto top_k = static_cast<std::size_t>(s.top_k);
  const bool block = layer.fp8_dtype() == Dtype::fp8_block;
  auto x = to_double(batch.x);
  auto w13 = to_double(layer.weights().w13);
  auto w2 = to_double(layer.weights().w2);
  if (fp8) {
    quantise(x, h, block ? 128 : h);
    w13 = dequantise(layer.weights().w13_q, layer.weights().w13_scale, h, block ? 128 : 2 * inter,
                     block ? 128 : h);
    w2 = dequantise(layer.weights().w2_q, layer.weights().w2_scale, inter, block ? 128 : h,
                    block ? 128 : inter);
  }
  const auto ids = download<std::int32_t>(batch.routings[0].topk_ids);
  const auto weights = download<float>(batch.routings[0].topk_weights);
  std::vector<double> out(x.size(), 0.0);
  for (std::size_t slot = 0; slot < ids.size(); ++slot) {
    const std::size_t token = slot / top_k;
    const auto expert = static_cast<std::size_t>(ids[slot]);
    std::vector<double> activation(inter);
    for (std::size_t i = 0; i < inter; ++i) {
      double gate = 0;
      double up = 0;
      for (std::size_t k = 0; k < h; ++k) {
        gate += x[token * h + k] * w13[(expert * 2 * inter + i) * h + k];
        up += x[token * h + k] * w13[(expert * 2 * inter + inter + i) * h + k];
      }
      activation[i] = gate / (1 + std::exp(-gate)) * up;
    }
    if (fp8) quantise(activation, inter, block ? 128 : inter);
    for (std::size_t n = 0; n < h; ++n) {
      double y = 0;
      for (std::size_t k = 0; k < inter; ++k) y += activation[k] * w2[(expert * h + n) * inter + k];
      out[token * h + n] += static_cast<double>(weights[slot]) * y;
    }
  }
  return out;
}

bool no_gpu() {
  if (!list_gpus().empty()) return false;
  MESSAGE("skipped: no GPU");
  return true;
}

}  // namespace

TEST_CASE("reference: agrees with a float64 layer on the CPU") {
  if (no_gpu()) return;
  const Gpu gpu = list_gpus()[0];
  Compiler compiler(arch_name(gpu), "", 0);
  for (const Dtype dtype : {Dtype::bf16, Dtype::fp8_block, Dtype::fp8_tensor}) {
    CAPTURE(to_string(dtype));
    const Problem problem = small_problem(dtype, 256, 128);
    if (is_fp8(dtype) && gpu.cc() < 89) continue;
    Layer layer(gpu, problem, is_fp8(dtype), compiler);
    const auto batch = layer.make_batch(problem, 1);
    make_reference(layer, *batch, is_fp8(dtype));
    const auto want = layer_in_float64(layer, *batch, is_fp8(dtype));
    const auto got = download<float>(batch->reference[is_fp8(dtype) ? 1 : 0]->out);
    REQUIRE(got.size() == want.size());
    double error = 0;
    double norm = 0;
    for (std::size_t i = 0; i < want.size(); ++i) {
      error += std::pow(static_cast<double>(got[i]) - want[i], 2);
      norm += want[i] * want[i];
    }
    // fp8: a sum that differs in its last bits may round to the neighbouring e4m3 value.
    CHECK(std::sqrt(error / norm) <= (is_fp8(dtype) ? 3e-3 : 2e-6));
  }
}

TEST_CASE("compare: finds one wrong element, one unwritten element and one NaN") {
  if (no_gpu()) return;
  const Gpu gpu = list_gpus()[0];
  Compiler compiler(arch_name(gpu), "", 0);
  const Problem problem = small_problem(Dtype::bf16, 256, 128);
  Layer layer(gpu, problem, false, compiler);
  constexpr std::int64_t kRows = 4096;
  constexpr std::int64_t kColumns = 256;
  std::vector<float> want(kRows * kColumns);
  std::mt19937 random(1);
  for (float& value : want) {
    value = static_cast<float>(random() % 2001) / 1000.0f - 1.0f;
    if (std::abs(value) < 0.3f) value = 0.3f;
  }
  const Buffer reference(want.size() * 4);
  reference.upload(want.data(), want.size() * 4);
  const auto verdict = [&](float at_7) {
    auto got = want;
    got[7 * kColumns + 7] = at_7;
    const Buffer device(got.size() * 4);
    device.upload(got.data(), got.size() * 4);
    return judge_deviation(compare(layer, {device.get(), nullptr, Format::fp32, 1, 1}, nullptr,
                                   reference.get<float>(), kRows, kColumns),
                           tolerance(false));
  };
  CHECK(verdict(want[7 * kColumns + 7]).empty());
  CHECK_FALSE(verdict(want[7 * kColumns + 7] + 0.5f).empty());
  CHECK_FALSE(verdict(0.0f).empty());
  CHECK_FALSE(verdict(std::nanf("")).empty());
  CHECK_FALSE(verdict(INFINITY).empty());
}

// `count` random points of each GEMM and dtype against the judge, and layers made of them.
void check_points(const Variant& variant, std::size_t count) {
  const Gpu gpu = list_gpus()[0];
  struct Case {
    Dtype dtype;
    std::int64_t hidden, intermediate;
  };
  // 2880-like sizes are no multiple of any tile.
  for (const Case& c : {Case{Dtype::bf16, 360, 200}, Case{Dtype::bf16, 544, 288},
                        Case{Dtype::fp8_block, 512, 384}, Case{Dtype::fp8_tensor, 528, 272}}) {
    if (!variant.supports(gpu, c.dtype)) continue;
    const Problem problem = small_problem(c.dtype, c.hidden, c.intermediate);
    EvaluatorOptions options;
    options.num_routings = 2;
    const auto evaluator = make_device_evaluator(0, problem, options);
    std::vector<Step> good[2];
    std::size_t num_tried[2] = {};
    for (const Stage stage : {Stage::gemm1, Stage::gemm2}) {
      // Few and many rows an expert: so many that every tile height is worth trying.
      std::vector<Point> points;
      for (const std::int64_t num_tokens : {16, 512}) {
        Problem searched = problem;
        searched.num_tokens = num_tokens;
        std::vector<Point> some =
            enumerate(variant.space(gpu, searched, stage, default_fp8_mode(c.dtype))).points;
        shuffle(some, 3);
        some.resize(std::min(some.size(), count / 2));
        points.insert(points.end(), some.begin(), some.end());
      }
      num_tried[stage == Stage::gemm1 ? 0 : 1] = points.size();
      for (const Point& point : points) {
        const Step step{std::string(to_string(stage)), std::string(variant.name()), point};
        const Trial trial =
            evaluator->evaluate({stage, problem.num_tokens, Plan{{step}}, 0, false});
        CAPTURE(to_string(c.dtype));
        CAPTURE(step.op);
        CAPTURE(point.key());
        CAPTURE(trial.reason);
        CAPTURE(trial.rel_err);
        const bool fine = trial.status == TrialStatus::ok ||
                          (trial.status == TrialStatus::rejected && trial.rule == "spill");
        CHECK(fine);
        if (trial.status == TrialStatus::ok) good[stage == Stage::gemm1 ? 0 : 1].push_back(step);
      }
    }
    // Where a variant has points for its GEMMs apart.
    REQUIRE(num_tried[0] == num_tried[1]);
    REQUIRE(good[0].size() * 2 >= num_tried[0]);
    REQUIRE(good[1].size() * 2 >= num_tried[1]);
    std::vector<Request> layers;
    for (const std::int64_t num_tokens : {std::int64_t{4}, problem.num_tokens}) {
      Problem at = problem;
      at.num_tokens = num_tokens;
      std::vector<Plan> joined = variant.joined_plans(gpu, at, default_fp8_mode(c.dtype));
      std::shuffle(joined.begin(), joined.end(), std::mt19937(4));
      joined.resize(std::min(joined.size(), count));
      for (Plan& plan : joined) {
        layers.push_back({Stage::layer, num_tokens, std::move(plan), 0, false});
      }
    }
    for (std::size_t i = 0; i < std::min({good[0].size(), good[1].size(), std::size_t{4}}); ++i) {
      const Plan plan{{good[0][i], good[1][i]}};
      layers.push_back({Stage::layer, problem.num_tokens, plan, 0, false});
    }
    if (num_tried[0] == 0 && c.hidden % 32 == 0) REQUIRE_FALSE(layers.empty());
    for (const Request& request : layers) {
      const Trial trial = evaluator->evaluate(request);
      CAPTURE(trial.plan.key());
      CAPTURE(trial.reason);
      CHECK(trial.status == TrialStatus::ok);
    }
  }
}

TEST_CASE("every variant: random points of every dtype are right on every routing") {
  if (no_gpu()) return;
  for (const auto& variant : variants()) check_points(*variant, 24);
}

// For compute-sanitizer, whose racecheck takes about half a second a launch.
TEST_CASE("sanitizer: a few portable points of every dtype") {
  if (no_gpu()) return;
  check_points(find_variant("portable"), 2);
}
TEST_CASE("sanitizer: a few Hopper points of every dtype") {
  if (no_gpu()) return;
  if (list_gpus()[0].cc() == 90) check_points(find_variant("hopper"), 2);
}
TEST_CASE("sanitizer: a few swapped points of every dtype") {
  if (no_gpu()) return;
  if (list_gpus()[0].cc() == 90) check_points(find_variant("swap_ab"), 4);
}

TEST_CASE("sanitizer: a few one-launch layers of every dtype") {
  if (no_gpu()) return;
  if (list_gpus()[0].cc() >= 90) check_points(find_variant("decode"), 4);
}

// What a launch leaves behind must suit the next, whatever its routing: counters, tickets, sums.
TEST_CASE("layer: plans whose GEMMs share a launch are right after a million calls") {
  if (no_gpu()) return;
  const Gpu gpu = list_gpus()[0];
  constexpr int kRoutings = 50;
  constexpr int kBatches = 10;
  constexpr int kReplays = 1'000'000 / kRoutings / kBatches;
  for (const Dtype dtype : {Dtype::bf16, Dtype::fp8_block}) {
    Problem problem = small_problem(dtype, 256, 256);
    problem.num_tokens = 5;
    const Fp8Mode fp8 = default_fp8_mode(dtype);
    Compiler compiler(arch_name(gpu), "", 0);
    Layer layer(gpu, problem, is_fp8(dtype), compiler);
    const auto batch = layer.make_batch(problem, kRoutings);
    for (const auto& variant : variants()) {
      const std::vector<Plan> plans = variant->supports(gpu, dtype)
                                          ? variant->joined_plans(gpu, problem, fp8)
                                          : std::vector<Plan>{};
      if (plans.empty()) continue;
      const Plan& plan = plans[plans.size() / 2];
      CAPTURE(plan.key());
      LoadedPlan loaded(layer, problem, plan, Stage::layer);
      loaded.check(*batch, "the first call");
      const Graph graph(layer.stream(), [&] {
        // The judge's is routing 0.
        for (int r = kRoutings - 1; r >= 0; --r) loaded.enqueue(*batch, r);
      });
      for (int i = 0; i < kBatches; ++i) {
        layer.poison();
        for (int replay = 0; replay < kReplays; ++replay) graph.launch(layer.stream());
        CHECK(judge_deviation(loaded.deviation(*batch), tolerance(is_fp8(dtype))) == "");
      }
    }
  }
}

TEST_CASE("layer: many tokens are sorted by several blocks and give the same result") {
  if (no_gpu()) return;
  const Gpu gpu = list_gpus()[0];
  Problem problem = small_problem(Dtype::bf16, 128, 64);
  problem.num_tokens = 9000;  // 27,000 slots
  EvaluatorOptions options;
  options.num_routings = 1;
  const auto evaluator = make_device_evaluator(0, problem, options);
  for (const int fuse_combine : {0, 1}) {  // 1: those blocks clear the output too
    if (fuse_combine == 1 && gpu.cc() < 90) continue;
    CAPTURE(fuse_combine);
    Plan plan = reference_plan(gpu, problem);
    plan.steps[1].point.set("FUSE_COMBINE", fuse_combine);
    const Trial trial = evaluator->evaluate({Stage::layer, problem.num_tokens, plan, 0, false});
    CAPTURE(trial.reason);
    CHECK(trial.status == TrialStatus::ok);
    CHECK(trial.rel_err <= 0.006);
  }
}

TEST_CASE("evaluator: plans in turns are measured when the first is asked for, and once") {
  if (no_gpu()) return;
  const Gpu gpu = list_gpus()[0];
  const Problem problem = small_problem(Dtype::bf16, 512, 256);
  const auto evaluator = make_device_evaluator(0, problem, {});
  Plan plan = reference_plan(gpu, problem);
  Plan other = plan;
  for (Step& step : other.steps) step.point.set("NUM_STAGES", 3);
  for (const Stage stage : {Stage::gemm1, Stage::gemm2, Stage::layer}) {
    CAPTURE(to_string(stage));
    const auto request = [&](const Plan& whole, bool in_turns) {
      const auto part = [&](const Plan& of) {
        return stage == Stage::layer ? of : Plan{{*of.find(to_string(stage))}};
      };
      Request request{stage, problem.num_tokens, part(whole), 0, true};
      request.num_samples = kRoundSamples;
      if (in_turns) request.beside = {part(plan), part(other)};
      return request;
    };
    for (const Plan* first : {&plan, &other}) {
      const Trial trial = evaluator->evaluate(request(*first, false));
      REQUIRE(trial.status == TrialStatus::ok);
      CHECK(trial.timing.num_samples == kRoundSamples);
    }
    for (int round = 2; round <= 3; ++round) {
      const double before_s = evaluator->usage().busy_s;
      const Trial one = evaluator->evaluate(request(other, true));
      const double after_s = evaluator->usage().busy_s;
      CHECK(after_s > before_s);
      const Trial two = evaluator->evaluate(request(plan, true));
      CHECK(evaluator->usage().busy_s == after_s);
      CHECK(one.plan == request(other, true).plan);
      CHECK(two.plan == request(plan, true).plan);
      for (const Trial* trial : {&one, &two}) {
        CHECK(trial->status == TrialStatus::ok);
        CHECK(trial->timing.num_samples == kRoundSamples);
        CHECK(trial->timing.median_us > 1);
        CHECK(trial->timing.median_us < 1000);
        CHECK(trial->rel_err > 0);
      }
    }
  }
  // A plan that was not checked before is, whatever it is beside.
  Plan third = plan;
  for (Step& step : third.steps) step.point.set("NUM_STAGES", 4);
  Request request{Stage::layer, problem.num_tokens, third, 0, true};
  request.num_samples = kRoundSamples;
  request.beside = {plan, third};
  CHECK(evaluator->evaluate(request).status == TrialStatus::ok);
}

TEST_CASE(
    "evaluator: a thorough layer has a clock, the GPU was busy, and energy is what is asked") {
  if (no_gpu()) return;
  const Gpu gpu = list_gpus()[0];
  const Problem problem = small_problem(Dtype::bf16, 512, 256);
  EvaluatorOptions options;
  options.num_routings = 2;
  const Request request{Stage::layer, problem.num_tokens, reference_plan(gpu, problem), 0, true};
  const auto evaluator = make_device_evaluator(0, problem, options);
  const Trial trial = evaluator->evaluate(request);
  REQUIRE(trial.status == TrialStatus::ok);
  CHECK(trial.timing.num_samples >= 20);
  CHECK(trial.workspace_bytes > 0);
  CHECK(trial.energy_mj == 0);
  CHECK(evaluator->usage().busy_s > 0);
  CHECK(evaluator->usage().busy_s < 5);
  std::string why;
  char pci_bus_id[32] = {};
  REQUIRE(cudaDeviceGetPCIBusId(pci_bus_id, sizeof pci_bus_id, 0) == cudaSuccess);
  const auto nvml = Nvml::open(pci_bus_id, why);
  CAPTURE(why);
  WARN(nvml);  // a container may lack it; then nothing is checked
  CHECK((trial.timing.clock_mhz > 0) == (nvml && nvml->clock()));
  options.with_energy = true;
  if (nvml && nvml->energy_mj()) {
    const Trial with = make_device_evaluator(0, problem, options)->evaluate(request);
    CHECK(with.energy_mj > 0);
    CHECK(with.energy_mj < with.timing.median_us);  // below 1000 W
  } else {
    CHECK_THROWS_AS(make_device_evaluator(0, problem, options), Error);
  }
}
