// Levels 0 to 5 of the optimisation journey: one MoE layer in bf16, from a loop over experts and
// tokens to grouped cuBLAS products in a graph. Level 6, the tuned kernels, is a LoadedPlan.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/embedded.hpp"
#include "cuda/cublas.hpp"
#include "lab/layer.hpp"

namespace moetune {

// kernels/journey: embedded apart from the searched kernels, so that no table's identity depends on
// it. Part of the bench module.
std::span<const EmbeddedFile> embedded_journey();
KernelSource journey_kernels();
KernelSource quantise_kernels();  // sm_89 and later

class Levels {
 public:
  // `memory_limit_bytes`: what level 1 and 2 may gather at a time. Throws Error(failed) for kernels
  // that do not compile.
  Levels(const Gpu& gpu, Layer& layer, const std::string& cache_dir, double memory_limit_bytes);

  // Counts the batch's routings for level 5, and takes the memory that `level` needs, in place of
  // the one before's. Throws Error(device) where the memory is missing or, from level 4
  // on, cuBLAS; Error(failed) where one slot's weights exceed the memory limit.
  void prepare(int level, TokenBatch& batch);
  // Enqueues one call of `level`, 0 to 5, which was prepared for this batch. Levels 0 and 4 copy
  // the routing to the host first, and wait for it; level 5 takes the one that prepare() saw, so
  // that it may be captured.
  void enqueue(int level, TokenBatch& batch, int routing);
  // The layer's output: bf16 [num_tokens, H].
  Matrix result() const;
  // Fills intermediates and output with NaN bytes.
  void poison();
  // Of the level that was prepared last.
  std::int64_t workspace_bytes() const;

  // What level 1 would need to gather all slots' weights at once, and into how many parts the
  // memory limit divides that.
  double gather_bytes(const TokenBatch& batch) const;
  std::int64_t num_chunks(const TokenBatch& batch) const;

  // Rows an expert's products are rounded up to, 1 by default; 0: to those of the fullest expert.
  // Before prepare().
  void set_padding(int rows) { padding_ = rows; }

  const Cublas* cublas() const { return cublas_.get(); }

 private:
  // What the sort kernel makes of a routing.
  struct Rows {
    std::vector<int> first;  // [E + 1], an expert's first row
    int padding = 1;
  };
  std::int64_t chunk_slots() const;
  void find_rows(const TokenBatch& batch);
  void naive(TokenBatch& batch, const DeviceRouting& routing);
  void gathered(TokenBatch& batch, const DeviceRouting& routing, bool fused);
  void indexed(TokenBatch& batch, const DeviceRouting& routing);
  void grouped(TokenBatch& batch, const DeviceRouting& routing, const Rows& rows, bool fixed);
  void matvec(cudaKernel_t kernel, const void* x, const void* w, const int* experts, void* out,
              std::int64_t first_slot, std::int64_t num_slots, std::int64_t top_k,
              std::int64_t num_rows, std::int64_t k);
  void swiglu(std::int64_t first_row, std::int64_t rows);
  void combine(TokenBatch& batch, const DeviceRouting& routing, const int* positions);

  Layer& layer_;
  Module module_;
  struct Kernels {
    cudaKernel_t matvec, matvec_swiglu, matvec_combine, gather_weights, swiglu, combine, sort_slots,
        gather_rows;
  } kernels_{};
  double memory_limit_bytes_;
  int padding_ = 1;
  std::unique_ptr<Cublas> cublas_;
  std::vector<Rows> rows_;  // of the routings that prepare() saw
  Buffer gathered_;         // bf16 [chunk, weights of an expert]
  Buffer x_sorted_;         // bf16 [rows, H]
  Buffer gate_up_;          // bf16 [rows, 2I]
  Buffer activation_;       // bf16 [rows, I]
  Buffer y_;                // bf16 [rows, H]
  Buffer out_;              // bf16 [T, H]
  Buffer positions_;        // int [slots]
  Buffer first_row_;        // int [E + 1]
  std::vector<int> host_;   // what was copied from the GPU
};

}  // namespace moetune
