#include "bench/levels.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>

#include "core/error.hpp"

namespace moetune {
namespace {

constexpr unsigned kWarps = 8;  // as in kernels/journey/levels.cu
constexpr unsigned kThreads = 32 * kWarps;
constexpr unsigned kSortThreads = 1024;
constexpr std::int64_t kMaxGrid = 65535;  // of a grid's second dimension
constexpr std::int64_t kGatherParts = 64;

// As in kernels/journey/levels.cu.
struct MatvecParams {
  const void* x;
  const void* w;
  const int* experts;
  void* out;
  int first_slot;
  int top_k;
  int num_rows;
  int k;
};

std::size_t bytes_bf16(std::int64_t count) {
  return static_cast<std::size_t>(count) * 2;
}
std::size_t bytes_int(std::int64_t count) {
  return static_cast<std::size_t>(count) * sizeof(int);
}
// bf16 elements behind `pointer`.
void* offset(void* pointer, std::int64_t elements) {
  return static_cast<char*>(pointer) + 2 * elements;
}
unsigned blocks(std::int64_t count, std::int64_t per_block) {
  return static_cast<unsigned>((count + per_block - 1) / per_block);
}

std::shared_ptr<const Cubin> compile_journey(const Gpu& gpu, const std::string& cache_dir) {
  Compiler compiler(arch_name(gpu), cache_dir, 1, embedded_journey());
  auto cubin = compiler.get(journey_kernels());
  if (!cubin->ok())
    throw Error(ErrorKind::failed, fmt::format("journey/levels.cu: {}", cubin->error));
  return cubin;
}

// Rows an expert gets for `counts`, rounded up; what sort_slots computes on the GPU.
std::vector<int> first_rows(const std::vector<int>& counts, int padding) {
  std::vector<int> first{0};
  for (const int count : counts)
    first.push_back(first.back() + (count + padding - 1) / padding * padding);
  return first;
}

}  // namespace

KernelSource journey_kernels() {
  return {"journey/levels.cu",
          {"moetune_journey::matvec", "moetune_journey::matvec_swiglu",
           "moetune_journey::matvec_combine", "moetune_journey::gather_weights",
           "moetune_journey::swiglu", "moetune_journey::combine", "moetune_journey::sort_slots",
           "moetune_journey::gather_rows"},
          {}};
}

KernelSource quantise_kernels() {
  return {"journey/quantise.cu", {"moetune_journey::quantise_blocks"}, {}};
}

Levels::Levels(const Gpu& gpu, Layer& layer, const std::string& cache_dir,
               double memory_limit_bytes)
    : layer_(layer),
      module_(*compile_journey(gpu, cache_dir)),
      memory_limit_bytes_(memory_limit_bytes) {
  // Looked up once: level 0 makes hundreds of thousands of launches.
  const auto find = [&](const char* name) {
    return module_.kernel(fmt::format("moetune_journey::{}", name));
  };
  kernels_ = {find("matvec"), find("matvec_swiglu"), find("matvec_combine"), find("gather_weights"),
              find("swiglu"), find("combine"),       find("sort_slots"),     find("gather_rows")};
}

double Levels::gather_bytes(const TokenBatch& batch) const {
  const LayerShape& s = batch.problem.shape;
  // GEMM1's weights are the larger ones, and GEMM2's can take their place.
  return 4.0 * static_cast<double>(s.intermediate_size * s.hidden_size) *
         static_cast<double>(batch.num_slots());
}

std::int64_t Levels::chunk_slots() const {
  const LayerShape& s = layer_.problem().shape;
  const double slot_bytes = 4.0 * static_cast<double>(s.intermediate_size * s.hidden_size);
  return std::min(kMaxGrid, static_cast<std::int64_t>(memory_limit_bytes_ / slot_bytes));
}

std::int64_t Levels::num_chunks(const TokenBatch& batch) const {
  const std::int64_t chunk = std::max<std::int64_t>(chunk_slots(), 1);
  return (batch.num_slots() + chunk - 1) / chunk;
}

void Levels::prepare(int level, TokenBatch& batch) {
  const LayerShape& s = batch.problem.shape;
  const std::int64_t slots = batch.num_slots();
  const std::int64_t chunk = std::min(chunk_slots(), slots);
  const bool gathers = level == 1 || level == 2;
  if (gathers && chunk < 1) {
    throw Error(ErrorKind::failed,
                fmt::format("one slot's weights take {:.2f} GB, the memory limit is {:.2f} GB; "
                            "raise --memory-limit",
                            gather_bytes(batch) / static_cast<double>(slots) / 1e9,
                            memory_limit_bytes_ / 1e9));
  }
  const bool sorts = level >= 4;
  std::int64_t rows = slots;
  if (sorts) {
    if (!cublas_) cublas_ = std::make_unique<Cublas>(layer_.stream());
    find_rows(batch);
    for (const Rows& of_routing : rows_)
      rows = std::max<std::int64_t>(rows, of_routing.first.back());
  }
  // A level's own only, so that workspace_bytes() is what it needs.
  const auto fit = [](Buffer& buffer, std::size_t bytes) {
    if (buffer.size() == bytes) return;
    buffer = Buffer();
    buffer.reserve(bytes);
  };
  const auto values = [](bool wanted, std::int64_t count) {
    return wanted ? bytes_bf16(count) : 0;
  };
  fit(gathered_, values(gathers, chunk * 2 * s.intermediate_size * s.hidden_size));
  fit(x_sorted_, values(sorts, rows * s.hidden_size));
  fit(gate_up_, values(level < 2 || sorts, rows * 2 * s.intermediate_size));
  fit(activation_, bytes_bf16(rows * s.intermediate_size));
  fit(y_, values(level != 3, rows * s.hidden_size));
  fit(out_, bytes_bf16(batch.problem.num_tokens * s.hidden_size));
  fit(positions_, sorts ? bytes_int(slots) : 0);
  fit(first_row_, sorts ? bytes_int(s.num_experts + 1) : 0);
}

void Levels::find_rows(const TokenBatch& batch) {
  rows_.clear();
  std::vector<int> topk_ids(static_cast<std::size_t>(batch.num_slots()));
  for (const DeviceRouting& routing : batch.routings) {
    routing.topk_ids.download(topk_ids.data(), bytes_int(batch.num_slots()));
    std::vector<int> counts(static_cast<std::size_t>(batch.problem.shape.num_experts));
    for (const int expert : topk_ids) ++counts[static_cast<std::size_t>(expert)];
    const int padding = padding_ > 0 ? padding_ : *std::max_element(counts.begin(), counts.end());
    rows_.push_back({first_rows(counts, padding), padding});
  }
}

void Levels::enqueue(int level, TokenBatch& batch, int routing) {
  const auto index = static_cast<std::size_t>(routing);
  const DeviceRouting& chosen = batch.routings[index];
  switch (level) {
    case 0:
      return naive(batch, chosen);
    case 1:
      return gathered(batch, chosen, false);
    case 2:
      return gathered(batch, chosen, true);
    case 3:
      return indexed(batch, chosen);
    default:
      return grouped(batch, chosen, rows_[index], level > 4);
  }
}

void Levels::matvec(cudaKernel_t kernel, const void* x, const void* w, const int* experts,
                    void* out, std::int64_t first_slot, std::int64_t num_slots, std::int64_t top_k,
                    std::int64_t num_rows, std::int64_t k) {
  const MatvecParams p{x,
                       w,
                       experts,
                       out,
                       static_cast<int>(first_slot),
                       static_cast<int>(top_k),
                       static_cast<int>(num_rows),
                       static_cast<int>(k)};
  launch(layer_.stream(), kernel,
         LaunchShape{dim3(static_cast<unsigned>(num_slots), blocks(num_rows, kWarps)), kThreads},
         p);
}

void Levels::swiglu(std::int64_t first_row, std::int64_t rows) {
  const std::int64_t columns = layer_.problem().shape.intermediate_size;
  const long long count = rows * columns;
  launch(layer_.stream(), kernels_.swiglu, LaunchShape{dim3(blocks(count, kThreads)), kThreads},
         offset(gate_up_.get(), first_row * 2 * columns), static_cast<int>(columns), count,
         offset(activation_.get(), first_row * columns));
}

void Levels::combine(TokenBatch& batch, const DeviceRouting& routing, const int* positions) {
  const LayerShape& s = batch.problem.shape;
  const long long count = batch.problem.num_tokens * s.hidden_size;
  launch(layer_.stream(), kernels_.combine, LaunchShape{dim3(blocks(count, kThreads)), kThreads},
         y_.get(), positions, routing.topk_weights.get<float>(), static_cast<int>(s.top_k),
         static_cast<int>(s.hidden_size), count, out_.get());
}

// Expert by expert, token by token: three launches for each of its slots.
void Levels::naive(TokenBatch& batch, const DeviceRouting& routing) {
  const LayerShape& s = batch.problem.shape;
  const Weights& w = layer_.weights();
  host_.resize(static_cast<std::size_t>(batch.num_slots()));
  check_cuda(cudaMemcpyAsync(host_.data(), routing.topk_ids.get(), bytes_int(batch.num_slots()),
                             cudaMemcpyDeviceToHost, layer_.stream().get()),
             "copy from the GPU");
  layer_.stream().synchronize();
  for (std::int64_t expert = 0; expert < s.num_experts; ++expert) {
    for (std::int64_t slot = 0; slot < batch.num_slots(); ++slot) {
      if (host_[static_cast<std::size_t>(slot)] != expert) continue;
      matvec(kernels_.matvec, batch.x.get(),
             offset(w.w13.get(), expert * 2 * s.intermediate_size * s.hidden_size), nullptr,
             gate_up_.get(), slot, 1, s.top_k, 2 * s.intermediate_size, s.hidden_size);
      swiglu(slot, 1);
      matvec(kernels_.matvec, activation_.get(),
             offset(w.w2.get(), expert * s.hidden_size * s.intermediate_size), nullptr, y_.get(),
             slot, 1, 1, s.hidden_size, s.intermediate_size);
    }
  }
  combine(batch, routing, nullptr);
}

// Every slot gets a copy of its expert's weights, as an indexing operator and a batched product do.
void Levels::gathered(TokenBatch& batch, const DeviceRouting& routing, bool fused) {
  const LayerShape& s = batch.problem.shape;
  const Weights& w = layer_.weights();
  const std::int64_t chunk = std::min(chunk_slots(), batch.num_slots());
  const auto gather = [&](const Buffer& from, std::int64_t first, std::int64_t count,
                          std::int64_t elements) {
    launch(layer_.stream(), kernels_.gather_weights,
           LaunchShape{dim3(kGatherParts, static_cast<unsigned>(count)), kThreads}, from.get(),
           routing.topk_ids.get<int>(), static_cast<int>(first), static_cast<long long>(elements),
           gathered_.get());
  };
  for (std::int64_t first = 0; first < batch.num_slots(); first += chunk) {
    const std::int64_t count = std::min(chunk, batch.num_slots() - first);
    gather(w.w13, first, count, 2 * s.intermediate_size * s.hidden_size);
    if (fused) {
      matvec(kernels_.matvec_swiglu, batch.x.get(), gathered_.get(), nullptr, activation_.get(),
             first, count, s.top_k, s.intermediate_size, s.hidden_size);
    } else {
      matvec(kernels_.matvec, batch.x.get(), gathered_.get(), nullptr, gate_up_.get(), first, count,
             s.top_k, 2 * s.intermediate_size, s.hidden_size);
      swiglu(first, count);
    }
    gather(w.w2, first, count, s.hidden_size * s.intermediate_size);
    matvec(kernels_.matvec, activation_.get(), gathered_.get(), nullptr, y_.get(), first, count, 1,
           s.hidden_size, s.intermediate_size);
  }
  combine(batch, routing, nullptr);
}

// Weights are read where they lie, and only the activation is stored.
void Levels::indexed(TokenBatch& batch, const DeviceRouting& routing) {
  const LayerShape& s = batch.problem.shape;
  const Weights& w = layer_.weights();
  const int* const experts = routing.topk_ids.get<int>();
  matvec(kernels_.matvec_swiglu, batch.x.get(), w.w13.get(), experts, activation_.get(), 0,
         batch.num_slots(), s.top_k, s.intermediate_size, s.hidden_size);
  const MatvecParams p{activation_.get(),
                       w.w2.get(),
                       experts,
                       out_.get(),
                       0,
                       static_cast<int>(s.top_k),
                       static_cast<int>(s.hidden_size),
                       static_cast<int>(s.intermediate_size)};
  launch(layer_.stream(), kernels_.matvec_combine,
         LaunchShape{
             dim3(static_cast<unsigned>(batch.problem.num_tokens), blocks(s.hidden_size, kWarps)),
             kThreads},
         p, routing.topk_weights.get<float>());
}

// Rows in order of experts, and for each expert one product on the matrix units.
void Levels::grouped(TokenBatch& batch, const DeviceRouting& routing, const Rows& rows,
                     bool fixed) {
  const LayerShape& s = batch.problem.shape;
  const Weights& w = layer_.weights();
  launch(layer_.stream(), kernels_.sort_slots, LaunchShape{dim3(1), kSortThreads},
         routing.topk_ids.get<int>(), static_cast<int>(batch.num_slots()),
         static_cast<int>(s.num_experts), rows.padding, first_row_.get<int>(),
         positions_.get<int>());
  const std::vector<int>* first = &rows.first;
  if (!fixed) {
    host_.resize(static_cast<std::size_t>(s.num_experts) + 1);
    check_cuda(cudaMemcpyAsync(host_.data(), first_row_.get(), bytes_int(s.num_experts + 1),
                               cudaMemcpyDeviceToHost, layer_.stream().get()),
               "copy from the GPU");
    layer_.stream().synchronize();
    first = &host_;
  }
  launch(layer_.stream(), kernels_.gather_rows,
         LaunchShape{dim3(static_cast<unsigned>(batch.num_slots())), kThreads}, batch.x.get(),
         positions_.get<int>(), static_cast<int>(s.top_k), static_cast<int>(s.hidden_size),
         x_sorted_.get());
  const auto products = [&](const Buffer& in, const Buffer& weights, const Buffer& out,
                            std::int64_t n, std::int64_t k) {
    for (std::int64_t e = 0; e < s.num_experts; ++e) {
      const auto at = static_cast<std::size_t>(e);
      const std::int64_t begin = (*first)[at];
      const std::int64_t count = (*first)[at + 1] - begin;
      if (count == 0) continue;
      cublas_->gemm(offset(in.get(), begin * k), offset(weights.get(), e * n * k),
                    offset(out.get(), begin * n), count, n, k);
    }
  };
  products(x_sorted_, w.w13, gate_up_, 2 * s.intermediate_size, s.hidden_size);
  swiglu(0, first->back());
  products(activation_, w.w2, y_, s.hidden_size, s.intermediate_size);
  combine(batch, routing, positions_.get<int>());
}

Matrix Levels::result() const {
  return {out_.get(), nullptr, Format::bf16, 1, 1};
}

void Levels::poison() {
  for (const Buffer* buffer : {&x_sorted_, &gate_up_, &activation_, &y_, &out_}) {
    if (buffer->size() == 0) continue;
    check_cuda(cudaMemsetAsync(buffer->get(), 0xff, buffer->size(), layer_.stream().get()),
               "memset");
  }
}

std::int64_t Levels::workspace_bytes() const {
  std::size_t sum = 0;
  for (const Buffer* buffer :
       {&gathered_, &x_sorted_, &gate_up_, &activation_, &y_, &out_, &positions_, &first_row_})
    sum += buffer->size();
  return static_cast<std::int64_t>(sum);
}

}  // namespace moetune
