// libmoetune on a GPU: every kind of plan, ids and layout against a layer computed here in float64.
#include <cuda_runtime_api.h>
#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "core/error.hpp"
#include "cuda/device.hpp"
#include "cuda/launch.hpp"
#include "jit/compiler.hpp"
#include "kernels/variant.hpp"
#include "program/build.hpp"
#include "runtime/moetune.h"
#include "table/table.hpp"
#include "tests/temporary_folder.hpp"

using namespace moetune;

namespace {

constexpr std::int64_t kExperts = 8, kTopK = 3, kHidden = 256, kInter = 256;
constexpr std::int64_t kMaxTokens = 700;  // more than one sorting block's slots
constexpr std::uint16_t kNan = 0xffff;

double from_bf16(std::uint16_t bits) {
  const std::uint32_t wide = static_cast<std::uint32_t>(bits) << 16;
  float value = 0;
  std::memcpy(&value, &wide, 4);
  return static_cast<double>(value);
}
std::uint16_t to_bf16(double value) {  // of what it can hold
  const float narrow_value = static_cast<float>(value);
  std::uint32_t bits = 0;
  std::memcpy(&bits, &narrow_value, 4);
  return static_cast<std::uint16_t>((bits + 0x8000u) >> 16);
}

template <typename T>
Buffer on_device(const std::vector<T>& host) {
  Buffer buffer(host.size() * sizeof(T));
  buffer.upload(host.data(), host.size() * sizeof(T));
  return buffer;
}

// Rows of bf16, `pitch` apart; NaN between them, which no result may hold.
struct Rows {
  std::vector<double> values;  // without the gaps
  Buffer device;
};
Rows random_rows(std::int64_t rows, std::int64_t columns, std::int64_t pitch, double scale,
                 unsigned seed) {
  std::mt19937 random(seed);
  std::vector<std::uint16_t> host(static_cast<std::size_t>(rows * pitch), kNan);
  Rows made;
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < columns; ++c) {
      const double uniform = static_cast<double>(random()) / 4294967296.0 - 0.5;
      const std::uint16_t bits = to_bf16(scale * uniform);
      host[static_cast<std::size_t>(r * pitch + c)] = bits;
      made.values.push_back(from_bf16(bits));
    }
  }
  made.device = on_device(host);
  return made;
}

struct Layout {
  const char* name;
  std::int64_t x_gap = 0, out_gap = 0, weight_gap = 0;
  bool int64_ids = false;
  bool bf16_weights = false;
  bool has_map = false;
  bool has_foreign = false;
  bool all_foreign = false;
};

// A layer with everything that calls of it need.
class Case {
 public:
  Case(const Layout& layout, std::int64_t num_tokens)
      : layout_(layout),
        num_tokens_(num_tokens),
        x_(random_rows(num_tokens, kHidden, kHidden + layout.x_gap, 2, 1)),
        w13_(random_rows(kExperts * 2 * kInter, kHidden, kHidden + layout.weight_gap, 0.25, 2)),
        w2_(random_rows(kExperts * kHidden, kInter, kInter + layout.weight_gap, 0.25, 3)) {
    std::mt19937 random(7);
    // The model's ids: with a map, of twice as many experts, of which this GPU has every second.
    const std::int64_t num_ids = layout.has_map ? 2 * kExperts : kExperts;
    std::vector<std::int32_t> map;
    for (std::int64_t id = 0; id < num_ids; ++id)
      map.push_back(id % 2 == 0 ? static_cast<std::int32_t>(id / 2) : -1);
    std::vector<std::int64_t> ids;
    std::vector<float> weights;
    for (std::int64_t slot = 0; slot < num_tokens * kTopK; ++slot) {
      // Distinct within a token.
      std::int64_t id = (slot / kTopK * 5 + slot % kTopK * 3 + slot / 40) % num_ids;
      if (layout.all_foreign || (layout.has_foreign && random() % 3 == 0)) {
        const std::int64_t foreign[] = {-1, num_ids, 1'000'000'000, -2'000'000'000};
        id = foreign[random() % 4];
      }
      ids.push_back(id);
      weights.push_back(
          static_cast<float>(from_bf16(to_bf16(0.1 + 0.01 * static_cast<double>(slot % 50)))));
      const bool is_known = id >= 0 && id < num_ids;
      experts_.push_back(!is_known ? -1 : layout.has_map ? map[static_cast<std::size_t>(id)] : id);
      weights_.push_back(static_cast<double>(weights.back()));
    }
    if (layout.int64_ids) {
      ids_ = on_device(ids);
    } else {
      ids_ = on_device(std::vector<std::int32_t>(ids.begin(), ids.end()));
    }
    std::vector<std::uint16_t> bf16;
    for (const float weight : weights) bf16.push_back(to_bf16(static_cast<double>(weight)));
    topk_weights_ = layout.bf16_weights ? on_device(bf16) : on_device(weights);
    map_ = on_device(map);
    out_ = Buffer(static_cast<std::size_t>(2 * num_tokens * (kHidden + layout.out_gap)));
    compute();
  }

  moetune_layer_desc desc() const {
    return {.size = sizeof(moetune_layer_desc),
            .dtype = MOETUNE_BF16,
            .num_experts = kExperts,
            .top_k = kTopK,
            .hidden_size = kHidden,
            .intermediate_size = kInter,
            .w13_row_pitch = kHidden + layout_.weight_gap,
            .w2_row_pitch = kInter + layout_.weight_gap};
  }
  moetune_args args(const Buffer& workspace) const {
    moetune_args args{};
    args.size = sizeof args;
    args.num_tokens = num_tokens_;
    args.x = x_.device.get();
    args.x_row_pitch = kHidden + layout_.x_gap;
    args.w13 = w13_.device.get();
    args.w2 = w2_.device.get();
    args.topk_ids = ids_.get();
    args.id_type = layout_.int64_ids ? MOETUNE_INT64 : MOETUNE_INT32;
    args.topk_weights = topk_weights_.get();
    args.weight_type = layout_.bf16_weights ? MOETUNE_WEIGHT_BF16 : MOETUNE_WEIGHT_FP32;
    if (layout_.has_map) {
      args.expert_map = map_.get<std::int32_t>();
      args.expert_map_size = 2 * kExperts;
    }
    args.out = out_.get();
    args.out_row_pitch = kHidden + layout_.out_gap;
    args.workspace = workspace.get();
    args.workspace_bytes = workspace.size();
    return args;
  }
  void poison() const { REQUIRE(cudaMemset(out_.get(), 0xff, out_.size()) == cudaSuccess); }
  // The largest relative error of a token; NaN and values between rows that were written count as
  // infinite.
  double error() const {
    REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
    std::vector<std::uint16_t> out(out_.size() / 2);
    out_.download(out.data(), out_.size());
    const auto pitch = static_cast<std::size_t>(kHidden + layout_.out_gap);
    double worst = 0;
    for (std::size_t t = 0; t < static_cast<std::size_t>(num_tokens_); ++t) {
      double error = 0;
      double size = 1e-12;
      for (std::size_t h = 0; h < kHidden; ++h) {
        const double want = want_[t * kHidden + h];
        error += std::pow(from_bf16(out[t * pitch + h]) - want, 2);
        size += want * want;
      }
      for (std::size_t h = kHidden; h < pitch; ++h)
        if (out[t * pitch + h] != kNan) return INFINITY;
      const double relative = std::sqrt(error / size);
      if (!(relative <= worst)) worst = relative;
      if (std::isnan(relative)) return INFINITY;
    }
    return worst;
  }

 private:
  void compute() {
    want_.assign(static_cast<std::size_t>(num_tokens_ * kHidden), 0);
    const auto dot = [](const double* a, const double* b, std::int64_t count) {
      double sum = 0;
      for (std::int64_t i = 0; i < count; ++i) sum += a[i] * b[i];
      return sum;
    };
    for (std::size_t slot = 0; slot < experts_.size(); ++slot) {
      if (experts_[slot] < 0) continue;
      const std::size_t token = slot / kTopK;
      const double* const x = x_.values.data() + token * kHidden;
      const double* const gate = w13_.values.data() + experts_[slot] * 2 * kInter * kHidden;
      const double* const down = w2_.values.data() + experts_[slot] * kHidden * kInter;
      std::vector<double> hidden(kInter);
      for (std::int64_t i = 0; i < kInter; ++i) {
        const double g = dot(gate + i * kHidden, x, kHidden);
        hidden[static_cast<std::size_t>(i)] =
            g / (1 + std::exp(-g)) * dot(gate + (kInter + i) * kHidden, x, kHidden);
      }
      for (std::int64_t h = 0; h < kHidden; ++h) {
        want_[token * kHidden + static_cast<std::size_t>(h)] +=
            weights_[slot] * dot(down + h * kInter, hidden.data(), kInter);
      }
    }
  }

  Layout layout_;
  std::int64_t num_tokens_;
  Rows x_, w13_, w2_;
  Buffer ids_, topk_weights_, map_, out_;
  std::vector<std::int64_t> experts_;  // of slots; -1: another GPU's
  std::vector<double> weights_;
  std::vector<double> want_;
};

class Handle {
 public:
  Handle(const moetune_layer_desc& desc, const std::string& table) {
    moetune_options options{};
    options.size = sizeof options;
    options.device = 0;
    options.table_path = table.c_str();
    static const TemporaryFolder cache;
    options.cache_dir = cache.path().c_str();
    const moetune_status status = moetune_create(&desc, &options, &layer_);
    CAPTURE(moetune_last_error());
    REQUIRE(status == MOETUNE_OK);
  }
  ~Handle() { moetune_destroy(layer_); }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  moetune_layer* get() const { return layer_; }
  Buffer workspace(std::int64_t num_tokens) const {
    std::size_t bytes = 0;
    REQUIRE(moetune_workspace_bytes(layer_, num_tokens, &bytes) == MOETUNE_OK);
    Buffer workspace(bytes);
    REQUIRE(cudaMemset(workspace.get(), 0xff, bytes) == cudaSuccess);  // nothing need be in it
    return workspace;
  }

 private:
  moetune_layer* layer_ = nullptr;
};

// A table in which every call finds this plan.
std::string table_of(const TemporaryFolder& folder, const Gpu& gpu, const Plan& plan,
                     std::int64_t num_tokens) {
  Table table;
  table.identity.gpu = gpu.name;
  table.identity.arch = arch_name(gpu);
  table.identity.driver = "0";
  table.identity.nvrtc = nvrtc_version();
  table.identity.shape = {"custom", kExperts, kTopK, kHidden, kInter};
  table.created = "2026-01-01T00:00:00Z";
  TableEntry entry;
  entry.plan = plan;
  entry.timing = {1, 1, 1, 20, 0};
  entry.reference_us = 1;
  entry.speedup = 1;
  table.entries.emplace(num_tokens, entry);
  return write_table(folder.path(), table);
}

// One plan a kind: packed or gathered rows, sums in GEMM2 or after it, activation apart or not, one
// launch for both GEMMs, for all.
std::vector<Plan> plans_of(const Gpu& gpu, const Problem& problem, bool pitched_weights) {
  std::vector<Plan> plans;
  for (const auto& variant : variants()) {
    if (!variant->supports(gpu, Dtype::bf16)) continue;
    const std::string name(variant->name());
    const auto reference = [&](Stage stage) {
      return variant->space(gpu, problem, stage, Fp8Mode::off).reference();
    };
    std::vector<Plan> joined = variant->joined_plans(gpu, problem, Fp8Mode::off);
    if (joined.size() > 2) joined = {joined.front(), joined.back()};
    plans.insert(plans.end(), joined.begin(), joined.end());
    if (name == "decode") continue;
    for (const char* const parameter : {"FUSE_SWIGLU", "GATHER", "FUSE_COMBINE"}) {
      for (const int value : {0, 1}) {
        Plan plan{
            {{"gemm1", name, reference(Stage::gemm1)}, {"gemm2", name, reference(Stage::gemm2)}}};
        bool has = false;
        for (Step& step : plan.steps) {
          if (!step.point.has(parameter)) continue;
          step.point.set(parameter, value);
          has = true;
        }
        if (has) plans.push_back(plan);
      }
    }
  }
  if (pitched_weights) {
    std::erase_if(plans, [&](const Plan& plan) {
      return std::any_of(plan.steps.begin(), plan.steps.end(), [&](const Step& step) {
        return !find_variant(step.variant)
                    .launch(problem, parse_stage(step.op), step.point)
                    .uses_tma();
      });
    });
  }
  return plans;
}

void check_layouts(const std::vector<Layout>& layouts, const std::vector<std::int64_t>& counts,
                   std::size_t every_nth_plan) {
  const Gpu gpu = list_gpus().at(0);
  std::size_t num_checked = 0;
  for (const std::int64_t num_tokens : counts) {
    Problem problem;
    problem.shape = {"custom", kExperts, kTopK, kHidden, kInter};
    problem.num_tokens = num_tokens;
    for (const Layout& layout : layouts) {
      const Case one(layout, num_tokens);
      const std::vector<Plan> plans = plans_of(gpu, problem, layout.weight_gap > 0);
      for (std::size_t i = 0; i < plans.size(); i += every_nth_plan) {
        if (num_tokens * kTopK > 1024 && plans[i].steps[1].variant == "decode") continue;
        CAPTURE(layout.name);
        CAPTURE(num_tokens);
        CAPTURE(plans[i].key());
        const TemporaryFolder folder;
        const Handle handle(one.desc(), table_of(folder, gpu, plans[i], num_tokens));
        const moetune_status prepared = moetune_prepare(handle.get(), &num_tokens, 1);
        CAPTURE(moetune_last_error());
        REQUIRE(prepared == MOETUNE_OK);
        const char* text = nullptr;
        REQUIRE(moetune_explain(handle.get(), num_tokens, 0, &text) == MOETUNE_OK);
        CHECK(std::string(text).find(plans[i].steps[1].point.key()) != std::string::npos);
        const Buffer workspace = handle.workspace(num_tokens);
        one.poison();
        const moetune_args args = one.args(workspace);
        CHECK(moetune_run(handle.get(), &args, nullptr) == MOETUNE_OK);
        CHECK(one.error() <= 0.01);
        ++num_checked;
      }
    }
  }
  CHECK(num_checked > 0);
}

const std::vector<Layout> kLayouts = {
    {.name = "plain"},
    {.name = "int64 ids, bf16 weights", .int64_ids = true, .bf16_weights = true},
    {.name = "foreign ids", .has_foreign = true},
    {.name = "foreign ids alone", .int64_ids = true, .all_foreign = true},
    {.name = "a map", .bf16_weights = true, .has_map = true, .has_foreign = true},
    {.name = "gaps in x and out", .x_gap = 24, .out_gap = 40, .has_foreign = true},
    {.name = "gaps in the weights", .weight_gap = 64},
};

}  // namespace

TEST_CASE("moetune: every kind of plan is right with every kind of ids and layout") {
  check_layouts(kLayouts, {1, 21, kMaxTokens}, 1);
}

// For compute-sanitizer.
TEST_CASE("sanitizer: a few calls of the library") {
  check_layouts({kLayouts[4], kLayouts[5], kLayouts[6]}, {5}, 5);
}

TEST_CASE("moetune: two streams, and a graph beside them, are right throughout") {
  const Gpu gpu = list_gpus().at(0);
  constexpr std::int64_t kTokens = 5;
  Problem problem;
  problem.shape = {"custom", kExperts, kTopK, kHidden, kInter};
  problem.num_tokens = kTokens;
  std::vector<Plan> plans{reference_plan(gpu, problem)};
  for (const auto& variant : variants()) {
    if (!variant->supports(gpu, Dtype::bf16)) continue;
    const std::vector<Plan> joined = variant->joined_plans(gpu, problem, Fp8Mode::off);
    if (!joined.empty()) plans.push_back(joined.back());
  }
  for (const Plan& plan : plans) {
    CAPTURE(plan.key());
    const Case cases[3] = {{kLayouts[0], kTokens}, {kLayouts[1], kTokens}, {kLayouts[2], kTokens}};
    const TemporaryFolder folder;
    const Handle handle(cases[0].desc(), table_of(folder, gpu, plan, kTokens));
    REQUIRE(moetune_prepare(handle.get(), nullptr, 0) == MOETUNE_OK);
    const Buffer workspaces[3] = {handle.workspace(kTokens), handle.workspace(kTokens),
                                  handle.workspace(kTokens)};
    const Stream streams[3];
    const moetune_args args[3] = {cases[0].args(workspaces[0]), cases[1].args(workspaces[1]),
                                  cases[2].args(workspaces[2])};
    const Graph graph(streams[2], [&] {
      REQUIRE(moetune_run(handle.get(), &args[2], streams[2].get()) == MOETUNE_OK);
      REQUIRE(moetune_run(handle.get(), &args[2], streams[2].get()) == MOETUNE_OK);
    });
    for (int round = 0; round < 20; ++round) {
      for (const Case& one : cases) one.poison();
      for (int call = 0; call < 50; ++call) {
        for (const int i : {0, 1})
          REQUIRE(moetune_run(handle.get(), &args[i], streams[i].get()) == MOETUNE_OK);
        graph.launch(streams[2]);
      }
      for (const Case& one : cases) CHECK(one.error() <= 0.01);
    }
  }
}

TEST_CASE("moetune: what cannot run says why, and writes nothing") {
  const Case one(kLayouts[0], 21);
  const TemporaryFolder folder;
  const Handle handle(one.desc(), folder.path());
  const Buffer workspace = [&] {
    std::int64_t count = 21;
    moetune_args args = one.args(Buffer(256));
    CHECK(moetune_run(handle.get(), &args, nullptr) == MOETUNE_NOT_PREPARED);
    CHECK(std::string(moetune_last_error()).find("moetune_prepare") != std::string::npos);
    REQUIRE(moetune_prepare(handle.get(), &count, 1) == MOETUNE_OK);
    return handle.workspace(count);
  }();
  one.poison();
  const auto fails = [&](moetune_status want, const char* says, auto&& spoil) {
    moetune_args args = one.args(workspace);
    spoil(args);
    CHECK(moetune_run(handle.get(), &args, nullptr) == want);
    CAPTURE(moetune_last_error());
    CHECK(std::string(moetune_last_error()).find(says) != std::string::npos);
  };
  fails(MOETUNE_INVALID_ARGUMENT, "x is NULL", [](moetune_args& a) { a.x = nullptr; });
  fails(MOETUNE_INVALID_ARGUMENT, "less than a row", [](moetune_args& a) { a.x_row_pitch = 8; });
  fails(MOETUNE_INVALID_ARGUMENT, "multiple of 16", [](moetune_args& a) { a.out_row_pitch = 257; });
  fails(MOETUNE_INVALID_ARGUMENT, "num_tokens is -1", [](moetune_args& a) { a.num_tokens = -1; });
  fails(MOETUNE_INVALID_ARGUMENT, "overlaps",
        [](moetune_args& a) { a.out = const_cast<void*>(a.x); });
  fails(MOETUNE_INVALID_ARGUMENT, "moetune_workspace_bytes",
        [](moetune_args& a) { a.workspace_bytes = 256; });
  fails(MOETUNE_INVALID_ARGUMENT, "aligned",
        [](moetune_args& a) { a.workspace = static_cast<char*>(a.workspace) + 16; });
  fails(MOETUNE_INVALID_ARGUMENT, "sizeof", [](moetune_args& a) { a.size = 4096; });
  fails(MOETUNE_INVALID_ARGUMENT, "id_type",
        [](moetune_args& a) { std::memset(&a.id_type, 7, sizeof a.id_type); });
  moetune_args nothing = one.args(workspace);
  nothing.num_tokens = 0;
  CHECK(moetune_run(handle.get(), &nothing, nullptr) == MOETUNE_OK);
  CHECK(one.error() == INFINITY);  // the poison is still there
}

// No bound: timings on shared machines are no tests. Run by hand, it prints what a call costs.
TEST_CASE("moetune: what a call costs on the CPU" * doctest::skip()) {
  constexpr std::int64_t kTokens = 5;
  constexpr int kCalls = 2000;
  const Gpu gpu = list_gpus().at(0);
  Problem problem;
  problem.shape = {"custom", kExperts, kTopK, kHidden, kInter};
  problem.num_tokens = kTokens;
  const Case one(kLayouts[0], kTokens);
  const Stream stream;
  const auto us_a_call = [&](auto&& call) {
    double best = 1e9;
    for (int round = 0; round < 10; ++round) {
      stream.synchronize();
      const auto begin = std::chrono::steady_clock::now();
      for (int i = 0; i < kCalls / 10; ++i) call();
      const std::chrono::duration<double, std::micro> took =
          std::chrono::steady_clock::now() - begin;
      best = std::min(best, took.count() / (kCalls / 10));
    }
    return best;
  };
  Compiler compiler(arch_name(gpu), "", 0);
  const Module module(
      *compiler.get({"reference/reference.cu", {"moetune_reference::fill_normal_bf16"}, {}}));
  const cudaKernel_t nothing = module.kernel("moetune_reference::fill_normal_bf16");
  for (const Plan& plan : plans_of(gpu, problem, false)) {
    const TemporaryFolder folder;
    const Handle handle(one.desc(), table_of(folder, gpu, plan, kTokens));
    REQUIRE(moetune_prepare(handle.get(), nullptr, 0) == MOETUNE_OK);
    const Buffer workspace = handle.workspace(kTokens);
    const moetune_args args = one.args(workspace);
    const double run_us = us_a_call([&] {
      if (moetune_run(handle.get(), &args, stream.get()) != MOETUNE_OK) std::abort();
    });
    const std::size_t num_launches = build(gpu, problem, plan, Stage::layer).ops.size();
    const double launches_us = us_a_call([&] {
      for (std::size_t i = 0; i < num_launches; ++i) {
        launch(stream, nothing, LaunchShape{dim3(1), 32, 0, gpu.cc() >= 90},
               static_cast<void*>(nullptr), 0LL, 1.0F, 0ULL);
      }
    });
    MESSAGE(plan.steps[1].variant << " " << plan.steps[1].point.key() << ": " << run_us << " us, "
                                  << num_launches << " empty launches " << launches_us
                                  << " us, beside them " << run_us - launches_us << " us");
  }
}
