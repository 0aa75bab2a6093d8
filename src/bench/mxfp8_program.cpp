#include "bench/mxfp8_program.hpp"

#include "bench/mxfp8.hpp"
#include "kernels/expected.hpp"
#include "kernels/journey/mxfp8_host.hpp"
#include "program/steps.hpp"

namespace moetune {
namespace {

constexpr int kGroupM = 8;  // row tiles of an expert walked together
// As in kernels/journey/mxfp8.cu.
constexpr std::int64_t kQuantiseThreads = 256;
constexpr std::int64_t kQuantiseBlockValues = kQuantiseThreads * 8 * 4;

// Arguments that are no structs.
struct Address {
  const void* value;
};
struct Count {
  long long value;
};

int tile_columns(const Mxfp8Config& c) {
  return c.output == Output::swiglu ? c.block_n / 2 : c.block_n;
}

// How the steps around it see this GEMM.
GemmLaunch launch_of(const Mxfp8Config& c) {
  return {.num_threads = num_threads(c),
          .smem_bytes = mx_smem_bytes(c),
          .block_m = c.block_m,
          .tile_columns = tile_columns(c),
          .group_m = kGroupM,
          .fp8 = true,
          .output = c.output};
}

struct Quantised {
  TensorId values, scales;
};
Quantised quantised(ProgramBuilder& b, const char* values, const char* scales, std::int64_t rows,
                    std::int64_t columns) {
  return {b.scratch(values, rows * columns),
          b.scratch(scales, rows * mx_scale_pitch(static_cast<int>(columns)))};
}
Quantised x_q(ProgramBuilder& b) {
  return quantised(b, "x_q", "x_scale", b.problem().num_tokens, b.shape().hidden_size);
}
Quantised activation_q(ProgramBuilder& b) {
  return quantised(b, "activation_q", "activation_scale", b.num_slots(),
                   b.shape().intermediate_size);
}
TensorId activation(ProgramBuilder& b) {
  return b.scratch("activation", 2 * b.num_slots() * b.shape().intermediate_size);
}
TensorId y(ProgramBuilder& b, Output output) {
  return b.scratch("y",
                   (output == Output::partial ? 4 : 2) * b.num_slots() * b.shape().hidden_size);
}

void append_quantise(ProgramBuilder& b, TensorId in, const Quantised& out, std::int64_t rows,
                     std::int64_t columns) {
  Params<Address> source, values, scales;
  Params<Count> count;
  source.bind(&Address::value, in, Access::read);
  values.bind(&Address::value, out.values, Access::write);
  scales.bind(&Address::value, out.scales, Access::write);
  count.value.value = rows * columns;
  Work work;
  work.step = "quantise";
  work.kernel = "quantise_mxfp8";
  const KernelSource kernel = mxfp8_kernels(columns);
  b.add(kernel, kernel.expressions.front(),
        {.x = static_cast<unsigned>(ceil_div(rows * columns, kQuantiseBlockValues)),
         .threads = static_cast<unsigned>(kQuantiseThreads)},
        std::move(work), source, count, values, scales);
}

void append_mxfp8_gemm(ProgramBuilder& b, Stage stage, const Mxfp8Config& c) {
  const bool first = stage == Stage::gemm1;
  const GemmLaunch launch = launch_of(c);
  const Quantised in = first ? x_q(b) : activation_q(b);
  Params<Mxfp8Params> p;
  const auto bind = [&](auto GemmParams::*member, TensorId tensor, Access access,
                        std::int64_t offset = 0) {
    p.bind_within(p.value.gemm.*member, tensor, access, offset);
  };
  bind(&GemmParams::a, in.values, Access::read);
  bind(&GemmParams::w, first ? tensor::w13 : tensor::w2, Access::read);
  bind(&GemmParams::out, first ? activation(b) : y(b, c.output), Access::write);
  bind(&GemmParams::sorted_slots, b.find("sorted_slots"), Access::read);
  bind(&GemmParams::tiles, tiles_tensor(b, stage, c.block_m), Access::read);
  bind(&GemmParams::num_tiles, b.find("num_tiles"), Access::read, first ? 0 : 4);
  p.value.gemm.num_slots = narrow(b.num_slots());
  p.value.gemm.split_k = 1;
  p.bind(&Mxfp8Params::a_scale, in.scales, Access::read);
  p.bind(&Mxfp8Params::w_scale, first ? tensor::w13_scale : tensor::w2_scale, Access::read);
  Work work;
  work.step = first ? "GEMM1" : "GEMM2";
  work.kernel = "mxfp8_gemm";
  const KernelSource kernel = mxfp8_gemm_kernel(c);
  b.add(kernel, kernel.expressions.front(),
        {.x = static_cast<unsigned>(
             max_row_tiles(b.num_slots(), b.shape().num_experts, c.block_m) *
             ceil_div(c.output == Output::swiglu ? c.size_n / 2 : c.size_n, tile_columns(c))),
         .threads = static_cast<unsigned>(launch.num_threads),
         .smem_bytes = static_cast<unsigned>(launch.smem_bytes)},
        std::move(work), p);
}

}  // namespace

LayerProgram mxfp8_program(const Gpu& gpu, const Problem& problem, Stage stage,
                           const Mxfp8Config (&configs)[2]) {
  ProgramBuilder b(gpu, problem, stage, true);
  const GemmLaunch first = launch_of(configs[0]);
  const GemmLaunch second = launch_of(configs[1]);
  const LayerShape& s = b.shape();
  if (stage == Stage::layer) {
    append_sort(b, {.gemm1 = &first, .gemm2 = &second});
    append_quantise(b, tensor::x, x_q(b), problem.num_tokens, s.hidden_size);
    append_mxfp8_gemm(b, Stage::gemm1, configs[0]);
    append_quantise(b, activation(b), activation_q(b), b.num_slots(), s.intermediate_size);
    append_mxfp8_gemm(b, Stage::gemm2, configs[1]);
    append_end(b, second);
    return b.finish();
  }
  b.to_setup(true);
  if (stage == Stage::gemm1) {
    append_sort(b, {.gemm1 = &first});
    append_quantise(b, tensor::x, x_q(b), problem.num_tokens, s.hidden_size);
  } else {
    append_sort(b, {.gemm2 = &second});
  }
  b.to_setup(false);
  append_mxfp8_gemm(b, stage, configs[stage == Stage::gemm1 ? 0 : 1]);
  b.result().data = b.find(stage == Stage::gemm1 ? "activation" : "y");
  b.result().by_position = true;
  return b.finish();
}

}  // namespace moetune
