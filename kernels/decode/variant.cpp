// Host half of the layer in one launch (moe_layer.cu): space, rules, compilation, time model.
#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <functional>

#include "core/error.hpp"
#include "kernels/decode/host.hpp"
#include "kernels/expected.hpp"
#include "program/steps.hpp"

namespace moetune::decode {
namespace {

class Decode final : public Variant {
 public:
  std::string_view name() const override { return "decode"; }
  std::string_view help() const override {
    return "the whole layer in one launch, for a handful of tokens; bf16 and fp8_block, sm_90 and "
           "later";
  }
  std::string_view source_file() const override { return "decode/moe_layer.cu"; }
  bool supports(const Gpu& gpu, Dtype dtype) const override {
    return gpu.cc() >= 90 && dtype != Dtype::fp8_tensor;
  }
  SearchSpace space(const Gpu& gpu, const Problem& problem, Stage stage,
                    Fp8Mode fp8) const override;
  KernelSource source(const Gpu& gpu, const Problem& problem, Stage stage,
                      const Point& point) const override;
  GemmLaunch launch(const Problem& problem, Stage stage, const Point& point) const override;
  double predict_us(const Gpu& gpu, const Problem& problem, Stage stage,
                    const Point& point) const override;
  std::vector<Plan> joined_plans(const Gpu& gpu, const Problem& problem,
                                 Fp8Mode fp8) const override;
  bool fuses_gemms(const Point&) const override { return true; }
  void append_layer(ProgramBuilder& builder, const Plan& plan) const override;
};

SearchSpace Decode::space(const Gpu& gpu, const Problem& problem, Stage stage, Fp8Mode fp8) const {
  SearchSpace space;
  space.parameters = {
      {"BLOCK_SIZE_M", {1, 2, 4, 8}, 1, "rows (token slots) of a tile"},
      {"NUM_WARPS", {4, 8, 16}, 16, "each with its own ring of stages"},
      {"NUM_STAGES", {2, 3, 4, 5, 6, 8, 10, 12}, 3, "of 16 weight rows for each warp"},
      {"STEP_BYTES", {128, 256}, 256, "of each weight row in a stage"},
      fp8_parameter(fp8, "1: e4m3 weights, 0: bf16"),
      {"BLOCKS_PER_SM", {1, 2, 4}, 1, "thread blocks on a multiprocessor"}};
  if (stage == Stage::gemm2) {
    Parameter sum = fuse_combine();
    sum.values = {1};
    sum.reference = 1;
    space.parameters.push_back(sum);
    space.parameters.push_back({"JOIN_GEMM1", {1}, 1, "1: one launch does the whole layer"});
  }
  // First, as it says most.
  space.spare("joined", [](const Point&) -> Violation {
    return "both GEMMs are one launch: it is tried in whole layers";
  });
  space.rule("slots", [problem](const Point&) -> Violation {
    const std::int64_t slots = problem.num_tokens * problem.shape.top_k;
    if (slots <= kMaxSlots) return {};
    return fmt::format("{} tokens for {} experts each are more than the {} slots a block sorts",
                       problem.num_tokens, problem.shape.top_k, kMaxSlots);
  });
  space.rule("multiples", [problem](const Point& p) -> Violation {
    const LayerShape& s = problem.shape;
    const std::int64_t of = p.at("FP8") == 1 ? kScaleGroup : 32;
    if (s.hidden_size % of == 0 && s.intermediate_size % of == 0) return {};
    return fmt::format("H {} and I {} must be multiples of {}", s.hidden_size, s.intermediate_size,
                       of);
  });
  space.rule("registers", [](const Point& p) -> Violation {
    const int threads = p.at("NUM_WARPS") * 32 * p.at("BLOCKS_PER_SM");
    if (threads <= 512) return {};
    return fmt::format("{} threads on a multiprocessor leave {} registers each", threads,
                       65536 / threads);
  });
  space.rule("shared_memory", [gpu, problem](const Point& p) -> Violation {
    const Config c = config_of(problem, p);
    const int need = decode::smem_bytes(c) + kSortedBytes;
    // A block's own 1024 bytes are the driver's.
    const int allowed =
        c.blocks_per_sm == 1 ? gpu.smem_per_block : gpu.smem_per_sm / c.blocks_per_sm - 1024;
    if (need <= allowed) return {};
    return fmt::format("needs {} bytes of shared memory, {} are allowed a block", need, allowed);
  });
  space.spare("many_tokens", [problem](const Point&) -> Violation {
    constexpr std::int64_t kTokens = 8;  // beyond, a launch's time is little
    if (problem.num_tokens <= kTokens) return {};
    return fmt::format("a launch saved is little at more than {} tokens", kTokens);
  });
  space.spare("padding", [problem](const Point& p) -> Violation {
    const auto most = std::bit_ceil(static_cast<std::uint64_t>(problem.num_tokens));
    const int block_m = p.at("BLOCK_SIZE_M");
    if (block_m == 1 || static_cast<std::uint64_t>(block_m) <= most) return {};
    return fmt::format("{} tokens have no {} rows of an expert", problem.num_tokens, block_m);
  });
  space.spare("many_rows", [problem](const Point& p) -> Violation {
    if (p.at("BLOCK_SIZE_M") == kMaxBlockM || mean_rows(problem) * 1.5 < p.at("BLOCK_SIZE_M") ||
        problem.num_tokens == 1)
      return {};
    return fmt::format("{:.1f} rows an expert often take several tiles of {}", mean_rows(problem),
                       p.at("BLOCK_SIZE_M"));
  });
  space.spare("few_warps", [](const Point& p) -> Violation {
    if (p.at("NUM_WARPS") * p.at("BLOCKS_PER_SM") >= 8) return {};
    return "fewer than 8 warps on a multiprocessor leave it idle between loads";
  });
  return space;
}

KernelSource Decode::source(const Gpu&, const Problem& problem, Stage, const Point& point) const {
  const Config c = config_of(problem, point);
  return {std::string(source_file()),
          {fmt::format(
              "moetune::decode::moe_layer<moetune::decode::Config{{.block_m = {}, .num_warps = {}, "
              ".blocks_per_sm = {}, .num_stages = {}, .step_bytes = {}, .fp8 = {}, .hidden_size = "
              "{}, .intermediate_size = {}, .top_k = {}}}>",
              c.block_m, c.num_warps, c.blocks_per_sm, c.num_stages, c.step_bytes, c.fp8,
              c.hidden_size, c.intermediate_size, c.top_k)},
          {}};
}

GemmLaunch Decode::launch(const Problem& problem, Stage stage, const Point& point) const {
  const Config c = config_of(problem, point);
  const bool first = stage == Stage::gemm1;
  return {.num_threads = num_threads(c),
          .smem_bytes = decode::smem_bytes(c),
          .block_m = c.block_m,
          .tile_columns = first ? kWeightRows / 2 : kWeightRows,
          .fp8 = c.fp8 == 1,
          .output = first ? Output::swiglu : Output::weighted_sum,
          .blocks_per_sm = c.blocks_per_sm};
}

void Decode::append_layer(ProgramBuilder& builder, const Plan& plan) const {
  const GemmStep step = gemm_step(builder.gpu(), builder.problem(), Stage::gemm2, plan);
  const GemmLaunch& c = step.launch;
  const LayerShape& s = builder.shape();
  const std::int64_t slots = builder.num_slots();
  if (slots > kMaxSlots) {
    throw Error(ErrorKind::input,
                fmt::format("{} tokens for {} experts each: the decode variant sorts at most {} "
                            "slots; use another variant",
                            builder.problem().num_tokens, s.top_k, kMaxSlots));
  }
  append_x_without_gaps(builder);
  moetune::Params<decode::Params> p;
  p.bind(&decode::Params::x, x_without_gaps(builder), Access::read);
  p.bind(&decode::Params::w13, tensor::w13, Access::read);
  p.bind(&decode::Params::w2, tensor::w2, Access::read);
  if (c.fp8) {
    p.bind(&decode::Params::w13_scale, tensor::w13_scale, Access::read);
    p.bind(&decode::Params::w2_scale, tensor::w2_scale, Access::read);
  }
  bind_ids(builder, p, p.value.ids);
  bind_weights(builder, p, p.value.weights);
  p.bind(&decode::Params::activation,
         builder.scratch("activation", 2 * slots * s.intermediate_size), Access::write);
  p.bind(&decode::Params::out, out_without_gaps(builder), Access::write);
  // A pair for each size of grid: launches count in it, and must agree on how many blocks do.
  const std::string counters = fmt::format("decode_counters_{}", c.blocks_per_sm);
  p.bind(&decode::Params::counters, builder.counter(counters, 16), Access::read_write);
  p.value.num_slots = narrow(slots);

  const auto weights = static_cast<double>(s.hidden_size * s.intermediate_size);
  const auto x = static_cast<double>(builder.problem().num_tokens * s.hidden_size);
  Work work;
  work.step = "layer";
  work.kernel = "moe_layer";
  work.bytes = 2 * x + 4 * static_cast<double>(slots) + 2 * x;
  work.weight_bytes_an_expert = weight_value_bytes(3 * weights, c.fp8);
  work.flops = 6 * static_cast<double>(slots) * weights;
  work.fp8 = c.fp8;
  builder.add(step.source, step.source.expressions.front(),
              {.x = static_cast<unsigned>(c.blocks_per_sm * builder.gpu().num_sms),
               .threads = static_cast<unsigned>(c.num_threads),
               .smem_bytes = static_cast<unsigned>(c.smem_bytes)},
              std::move(work), p);
  append_out_with_gaps(builder);
}

// Of every height of tiles, count of warps and step the points with the deepest ring.
std::vector<Plan> Decode::joined_plans(const Gpu& gpu, const Problem& problem, Fp8Mode fp8) const {
  std::vector<Plan> plans;
  if (!supports(gpu, problem.dtype)) return plans;
  SearchSpace space = this->space(gpu, problem, Stage::gemm2, fp8);
  std::erase_if(space.constraints, [](const Constraint& c) { return c.name == "joined"; });
  const std::vector<int>& stages = space.find("NUM_STAGES")->values;
  const std::vector<int> deepest_first(stages.rbegin(), stages.rend());
  Point point = space.reference();
  const auto for_each = [&](const char* parameter, auto&& body) {
    for (const int value : space.find(parameter)->values) {
      point.set(parameter, value);
      body();
    }
  };
  const auto add_deepest = [&] {
    for (const int count : deepest_first) {
      point.set("NUM_STAGES", count);
      if (space.reject(point)) continue;
      Point first;
      for (const auto& [name, value] : point.values()) {
        if (name != "FUSE_COMBINE" && name != "JOIN_GEMM1") first.set(name, value);
      }
      const std::string variant(name());
      plans.push_back({{{"gemm1", variant, first}, {"gemm2", variant, point}}});
      return;
    }
  };
  for_each("BLOCK_SIZE_M", [&] {
    for_each("NUM_WARPS", [&] {
      for_each("STEP_BYTES",
               [&] { for_each("FP8", [&] { for_each("BLOCKS_PER_SM", add_deepest); }); });
    });
  });
  // These take NVRTC several seconds each. On an H200 one that fills the multiprocessor and takes
  // large steps was within 1 % of the best of all for every model and token count
  // (results/NVIDIA_H200/notes.md); where none fits, all are tried.
  const auto is_full = [](const Plan& plan) {
    const Point& p = plan.steps.back().point;
    return p.at("NUM_WARPS") * p.at("BLOCKS_PER_SM") == 16 && p.at("STEP_BYTES") == 256;
  };
  if (std::any_of(plans.begin(), plans.end(), is_full)) std::erase_if(plans, std::not_fn(is_full));
  return plans;
}

// The time to read the weights: there is no more to say.
double Decode::predict_us(const Gpu& gpu, const Problem& problem, Stage stage,
                          const Point& point) const {
  const Config c = config_of(problem, point);
  const bool first = stage == Stage::gemm1;
  const double gbps = gpu.read_gbps > 0 ? gpu.read_gbps : 1000;
  const double rows = static_cast<double>(first ? 2 * c.intermediate_size : c.hidden_size);
  return active_experts(problem) * rows * row_bytes(c, first) / gbps / 1e3 + 2;
}

}  // namespace

Config config_of(const Problem& problem, const Point& point) {
  const LayerShape& shape = problem.shape;
  return {.block_m = point.at("BLOCK_SIZE_M"),
          .num_warps = point.at("NUM_WARPS"),
          .blocks_per_sm = point.at("BLOCKS_PER_SM"),
          .num_stages = point.at("NUM_STAGES"),
          .step_bytes = point.at("STEP_BYTES"),
          .fp8 = point.at("FP8"),
          .hidden_size = static_cast<int>(shape.hidden_size),
          .intermediate_size = static_cast<int>(shape.intermediate_size),
          .top_k = static_cast<int>(shape.top_k)};
}

std::unique_ptr<Variant> make_decode() {
  return std::make_unique<Decode>();
}

}  // namespace moetune::decode
