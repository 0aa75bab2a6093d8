#include "bench/mxfp8_layer.hpp"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <array>
#include <span>

#include "bench/levels.hpp"
#include "bench/measure_call.hpp"
#include "bench/mxfp8_program.hpp"
#include "core/error.hpp"
#include "core/mxfp8.hpp"
#include "lab/reference.hpp"
#include "measure/timing.hpp"
#include "search/legal_points.hpp"

namespace moetune {
namespace {

constexpr std::int64_t kCheckedValues = 1 << 18;  // of a quantised tensor, at either end

std::size_t bytes(std::int64_t count, std::int64_t size) {
  return static_cast<std::size_t>(count * size);
}
int index_of(Stage stage) {
  return stage == Stage::gemm1 ? 0 : 1;
}
double mx_bytes(double rows, double columns) {
  return rows * columns * (1 + 1.0 / kMxBlock);
}

Problem must_serve(const Gpu& gpu, Problem problem) {
  check_mxfp8(gpu);
  problem.dtype = Dtype::bf16;  // of what is quantised
  for (const Stage stage : {Stage::gemm1, Stage::gemm2}) {
    const std::string reason = why_no_mxfp8_point(gpu, problem, stage);
    if (!reason.empty()) throw Error(ErrorKind::input, reason);
  }
  return problem;
}

// The sources of a layer's kernels and of the journey's.
std::span<const EmbeddedFile> all_kernels() {
  static const std::vector<EmbeddedFile> files = [] {
    std::vector<EmbeddedFile> all(embedded_kernels().begin(), embedded_kernels().end());
    for (const EmbeddedFile& file : embedded_journey()) {
      const bool is_there = std::any_of(all.begin(), all.end(), [&](const EmbeddedFile& other) {
        return other.name == file.name;
      });
      if (!is_there) all.push_back(file);
    }
    return all;
  }();
  return files;
}

// e8m0 [rows, pitch] -> fp32 [rows, blocks], by definition.
Buffer expand_scales(const Buffer& scales, std::int64_t rows, std::int64_t pitch,
                     std::int64_t blocks) {
  std::array<float, 256> values{};
  for (std::size_t byte = 0; byte < values.size(); ++byte)
    values[byte] = static_cast<float>(from_e8m0(static_cast<std::uint8_t>(byte)));
  std::vector<std::uint8_t> raw(bytes(rows, pitch));
  scales.download(raw.data(), raw.size());
  std::vector<float> expanded;
  expanded.reserve(bytes(rows, blocks));
  for (std::size_t row = 0; row < bytes(rows, pitch); row += bytes(pitch, 1)) {
    for (std::size_t i = row; i < row + bytes(blocks, 1); ++i) expanded.push_back(values[raw[i]]);
  }
  Buffer out(expanded.size() * sizeof(float));
  out.upload(expanded.data(), out.size());
  return out;
}

}  // namespace

std::string why_no_mxfp8_point(const Gpu& gpu, const Problem& problem, Stage stage) {
  const LegalPoints legal = enumerate(mxfp8_space(gpu, problem, stage));
  if (!legal.points.empty()) return "";
  std::string rules;
  for (const auto& [rule, rejected] : legal.rejected)
    rules += fmt::format("; {} ({} points): {}", rule, rejected.count, rejected.example);
  return fmt::format(
      "{}: no point of MXFP8's {} is legal on {}{}; choose a model, --shape or --tp whose hidden "
      "and intermediate size are multiples of {}",
      problem.shape.model, to_string(stage), gpu.name, rules, kMxBlock);
}

Mxfp8Layer::Mxfp8Layer(const Gpu& gpu, const Problem& problem, const std::string& cache_dir,
                       int num_jobs)
    : gpu_(gpu),
      problem_(must_serve(gpu, problem)),
      compiler_(arch_name(gpu), cache_dir, num_jobs, all_kernels()),
      layer_(gpu, problem_, false, compiler_),
      quantise_h_(problem.shape.hidden_size, compiler_),
      quantise_i_(problem.shape.intermediate_size, compiler_) {
  const LayerShape& s = problem.shape;
  w13_ = quantise(quantise_h_, layer_.weights().w13, s.num_experts * 2 * s.intermediate_size,
                  s.hidden_size, true);
  w2_ = quantise(quantise_i_, layer_.weights().w2, s.num_experts * s.hidden_size,
                 s.intermediate_size, true);
}

Mxfp8Layer::Quantised Mxfp8Layer::quantise(const Mxfp8Quantiser& quantiser, const Buffer& in,
                                           std::int64_t rows, std::int64_t columns,
                                           bool for_judge) const {
  Quantised tensor;
  tensor.values = Buffer(bytes(rows, columns));
  tensor.scales = Buffer(bytes(rows, quantiser.scale_pitch()));
  quantiser.enqueue(layer_.stream(), in.get(), rows, tensor.values.get(), tensor.scales.get());
  layer_.stream().synchronize();
  const std::int64_t checked = std::min(rows, (kCheckedValues + columns - 1) / columns);
  for (const std::int64_t first : {std::int64_t{0}, rows - checked})
    quantiser.check(in, tensor.values, tensor.scales, first, checked);
  if (for_judge) {
    tensor.judge_scales =
        expand_scales(tensor.scales, rows, quantiser.scale_pitch(), columns / kMxBlock);
  }
  return tensor;
}

Matrix Mxfp8Layer::judged(const Quantised& tensor) const {
  return {tensor.values.get(), tensor.judge_scales.get<float>(), Format::e4m3, 1, kMxBlock};
}

void Mxfp8Layer::prepare(std::int64_t num_tokens) {
  const LayerShape& s = problem_.shape;
  Problem problem = problem_;
  problem.num_tokens = num_tokens;
  batch_ = layer_.make_batch(problem, kBenchRoutings);
  x_ = quantise(quantise_h_, batch_->x, num_tokens, s.hidden_size, true);
  make_reference_output();
  for (std::optional<Gemm>& best : best_) best.reset();
}

void Mxfp8Layer::make_reference_output() {
  const LayerShape& s = problem_.shape;
  const std::int64_t slots = batch_->num_slots();
  make_reference(layer_, *batch_, false);
  const Judge judge(layer_, *batch_);
  want_activation_ = judge.swiglu(judge.gemm(judged(x_), judged(w13_), narrow(s.top_k),
                                             2 * s.intermediate_size, s.hidden_size));
  want_activation_bf16_ = Buffer(bytes(slots * s.intermediate_size, 2));
  judge.convert({want_activation_.get(), nullptr, Format::fp32, 1, 1}, slots, s.intermediate_size,
                nullptr, want_activation_bf16_.get());
  want_activation_q_ =
      quantise(quantise_i_, want_activation_bf16_, slots, s.intermediate_size, true);
  want_y_ =
      judge.gemm(judged(want_activation_q_), judged(w2_), 1, s.hidden_size, s.intermediate_size);
  want_out_ = judge.combine(want_y_);
  layer_.stream().synchronize();  // before what the judge holds goes
}

Mxfp8Layer::Gemm Mxfp8Layer::load(Stage stage, const Mxfp8Config& config) {
  const auto cubin = compiler_.get(mxfp8_gemm_kernel(config));
  if (!cubin->ok())
    throw Error(ErrorKind::failed, fmt::format("{}: {}", to_string(stage), cubin->error));
  const std::string defect =
      resource_defect(cubin->kernels.front(), cubin->log, num_threads(config));
  if (!defect.empty())
    throw Error(ErrorKind::failed, fmt::format("{}: {}", to_string(stage), defect));
  const Mxfp8Config both[2] = {config, config};
  Gemm gemm;
  gemm.config = config;
  gemm.executor = std::make_unique<Executor>(mxfp8_program(gpu_, batch_->problem, stage, both),
                                             layer_.kernels());
  layer_.reserve(gemm.executor->program(), *batch_);
  return gemm;
}

Bindings Mxfp8Layer::bind(const LayerProgram& program, int routing) const {
  Bindings bindings = layer_.bind(program, *batch_, routing);
  bindings[tensor::w13] = w13_.values.get();
  bindings[tensor::w13_scale] = w13_.scales.get();
  bindings[tensor::w2] = w2_.values.get();
  bindings[tensor::w2_scale] = w2_.scales.get();
  return bindings;
}

void Mxfp8Layer::enqueue(const Executor& executor, int routing) {
  executor.run(bind(executor.program(), routing), layer_.stream().get());
}

Deviation Mxfp8Layer::compare_stage(Stage stage, const Gemm& gemm) {
  const LayerShape& s = problem_.shape;
  const LayerProgram& program = gemm.executor->program();
  layer_.poison();
  for (int r = 0; r < kBenchRoutings; ++r)
    gemm.executor->set_up(bind(program, r), layer_.stream().get());
  const Bindings bindings = bind(program, 0);
  const auto bound = [&](std::string_view name) {
    return bindings[static_cast<std::size_t>(program.find(name))];
  };
  const int* const positions = static_cast<const int*>(bound("positions"));
  const bool first = stage == Stage::gemm1;
  if (!first) {
    const auto pack = [&](const Buffer& in, void* out) {
      launch(layer_.stream(), layer_.judge().kernel("moetune_reference::reference_pack"),
             LaunchShape{dim3(static_cast<unsigned>(batch_->num_slots())), 256}, in.get(),
             positions, static_cast<long long>(in.size()) / batch_->num_slots(), out);
    };
    pack(want_activation_q_.values, bound("activation_q"));
    pack(want_activation_q_.scales, bound("activation_scale"));
  }
  enqueue(*gemm.executor, 0);
  const Format format = gemm.config.output == Output::partial ? Format::fp32 : Format::bf16;
  const void* const data = bindings[static_cast<std::size_t>(program.result.data)];
  return compare(layer_, {data, nullptr, format, 1, 1}, positions,
                 (first ? want_activation_ : want_y_).get<float>(), batch_->num_slots(),
                 first ? s.intermediate_size : s.hidden_size);
}

Deviation Mxfp8Layer::check(Stage stage, const Mxfp8Config& config) {
  return compare_stage(stage, load(stage, config));
}

std::string_view Mxfp8Layer::path(const Gemm& gemm) const {
  return to_string(mxfp8_path(gpu_, gemm.config));
}

Mxfp8Product Mxfp8Layer::tune(Stage stage) {
  const LayerShape& s = problem_.shape;
  Mxfp8Product product;
  product.what = to_string(stage);
  product.num_tokens = batch_->problem.num_tokens;
  const auto slots = static_cast<double>(batch_->num_slots());
  const bool first = stage == Stage::gemm1;
  const auto n = static_cast<double>(first ? 2 * s.intermediate_size : s.hidden_size);
  const auto k = static_cast<double>(first ? s.hidden_size : s.intermediate_size);
  const double experts = expected_active_experts(s, product.num_tokens);
  product.flops = 2 * slots * n * k;
  product.bytes = mx_bytes(experts * n, k) +
                  mx_bytes(first ? static_cast<double>(product.num_tokens) : slots, k) +
                  2 * slots * (first ? n / 2 : n);

  const std::vector<Point> points = enumerate(mxfp8_space(gpu_, batch_->problem, stage)).points;
  for (const Point& point : points)
    compiler_.submit(mxfp8_gemm_kernel(mxfp8_config(problem_, stage, point)));
  std::string why_none = why_no_mxfp8_point(gpu_, batch_->problem, stage);
  std::optional<Gemm>& best = best_[index_of(stage)];
  for (const Point& point : points) {
    ++product.num_points;
    bool is_wrong = false;
    try {
      Gemm gemm = load(stage, mxfp8_config(problem_, stage, point));
      const Deviation deviation = compare_stage(stage, gemm);
      const std::string defect = judge_deviation(deviation, kMxfp8Tolerance);
      if (!defect.empty()) {
        is_wrong = true;
        ++product.num_wrong;
        throw Error(ErrorKind::failed, "wrong result: " + defect);
      }
      const Graph graph(layer_.stream(), [&] {
        for (int r = 0; r < kBenchRoutings; ++r) enqueue(*gemm.executor, r);
      });
      bool stopped = false;
      const double stop_above_us = best ? 2 * product.timing.median_us : 0;
      const Timing timing =
          time_graph(graph, layer_.stream(),
                     {.num_calls = kBenchRoutings, .stop_above_us = stop_above_us}, stopped);
      if (stopped || (best && timing.median_us >= product.timing.median_us)) continue;
      product.path = path(gemm);
      best = std::move(gemm);
      product.timing = timing;
      product.point = point.key();
      product.rel_err = deviation.rel_err;
    } catch (const Error& error) {
      if (cudaDeviceSynchronize() != cudaSuccess) throw;
      why_none = fmt::format("{}: {}", point.key(), error.what());
      spdlog::log(is_wrong ? spdlog::level::warn : spdlog::level::info, "mxfp8 {} {}",
                  to_string(stage), why_none);
    }
  }
  if (!best)
    throw Error(ErrorKind::failed, fmt::format("mxfp8 {}: {}", to_string(stage), why_none));
  return product;
}

Mxfp8Product Mxfp8Layer::measure() {
  const LayerShape& s = problem_.shape;
  const Problem& problem = batch_->problem;
  Mxfp8Product product;
  product.what = "layer";
  product.path = path(*best_[0]);
  if (path(*best_[1]) != product.path) product.path += fmt::format(" and {}", path(*best_[1]));
  product.num_tokens = problem.num_tokens;
  product.flops = layer_flops(problem);
  product.bytes = mx_bytes(expected_active_experts(s, problem.num_tokens) * 3 *
                               static_cast<double>(s.intermediate_size),
                           static_cast<double>(s.hidden_size)) +
                  4 * static_cast<double>(problem.num_tokens * s.hidden_size);
  const Mxfp8Config configs[2] = {best_[0]->config, best_[1]->config};
  const Executor executor(mxfp8_program(gpu_, problem, Stage::layer, configs), layer_.kernels());
  layer_.reserve(executor.program(), *batch_);
  layer_.poison();
  enqueue(executor, 0);
  const void* const out = bind(executor.program(), 0)[tensor::out];
  const auto against = [&](const Buffer& want) {
    return compare(layer_, {out, nullptr, Format::bf16, 1, 1}, nullptr, want.get<float>(),
                   problem.num_tokens, s.hidden_size);
  };
  const auto judge = [&](const char* what, const Deviation& deviation, const Tolerance& tolerance) {
    const std::string defect = judge_deviation(deviation, tolerance);
    if (!defect.empty())
      throw Error(ErrorKind::failed, fmt::format("wrong result, {}: {}", what, defect));
    return deviation.rel_err;
  };
  product.rel_err = judge("against the same MXFP8 values", against(want_out_), kMxfp8Tolerance);
  product.bf16_err = judge("against the bf16 layer", against(batch_->reference[0]->out),
                           kMxfp8QuantisationTolerance);
  const Graph graph(layer_.stream(), [&] {
    for (int r = 0; r < kBenchRoutings; ++r) enqueue(executor, r);
  });
  bool stopped = false;
  product.timing = time_graph(graph, layer_.stream(), {.num_calls = kBenchRoutings}, stopped);
  return product;
}

}  // namespace moetune
