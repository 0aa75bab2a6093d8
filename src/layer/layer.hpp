// One MoE layer on a device: weights, token batches, and the kernels of a call in order.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/gpu.hpp"
#include "core/problem.hpp"
#include "core/trial.hpp"
#include "cuda/launch.hpp"
#include "kernels/support/support.hpp"
#include "kernels/variant.hpp"
#include "layer/routing.hpp"

namespace moetune {

// A row-major matrix as the kernels see it. scales: one for row_block x column_block elements.
enum class Format : int { fp32, bf16, e4m3 };
struct Matrix {
  const void* data = nullptr;
  const float* scales = nullptr;
  Format format = Format::fp32;
  int row_block = 1;
  int column_block = 1;
  std::int64_t scale_pitch = 0;  // 0: scales lie by rows, else by column blocks, this far apart
};

// Weights of all experts: bf16, and the same quantised once when the problem asks for fp8.
struct Weights {
  Buffer w13, w2;           // bf16 [E, 2I, H], [E, H, I]
  Buffer w13_q, w13_scale;  // e4m3 and fp32 scales
  Buffer w2_q, w2_scale;
};

// What the sort kernel writes for one routing.
struct Sorted {
  Buffer sorted_slots;  // int [num_slots]
  Buffer positions;     // int [num_slots]
  Buffer counts;        // int [blocks, E], scratch
  Buffer tiles[2];      // RowTile [max tiles], for GEMM1's and GEMM2's BLOCK_SIZE_M
  Buffer num_tiles;     // int [2]
};

struct DeviceRouting {
  Buffer topk_ids;      // int [T, K]
  Buffer topk_weights;  // float [T, K]
  Sorted sorted;
};

// What the judge says a batch's routing 0 must give, in one precision.
struct ReferenceOutput {
  Buffer activation;   // fp32 [num_slots, I], after requantisation for fp8
  Buffer out;          // fp32 [T, H]
  Buffer gemm2_input;  // the activation in GEMM2's format, bf16 or e4m3, by slot
  Buffer gemm2_scale;  // fp32, fp8 only
};

// Inputs for one token count: x and one or more routings.
struct TokenBatch {
  Problem problem;  // with this batch's num_tokens and routing
  Buffer x;         // bf16 [T, H]
  Buffer x_q, x_scale;
  std::vector<DeviceRouting> routings;
  std::array<std::unique_ptr<ReferenceOutput>, 2> reference;  // [bf16, fp8], made when needed
  std::int64_t num_slots() const { return problem.num_tokens * problem.shape.top_k; }
};

// A GEMM step ready to launch.
struct GemmStep {
  GemmLaunch shape;
  cudaKernel_t kernel = nullptr;
  bool fp8() const { return shape.fp8; }
};
GemmStep gemm_step(const Problem& problem, const Step& step, cudaKernel_t kernel);

class Layer {
 public:
  // Makes random weights on the device: normal, deviation K^-1/2 so that activations keep their
  // size. `with_fp8` adds the quantised copy. Throws Error(device) saying how much memory is
  // needed.
  Layer(const Gpu& gpu, const Problem& problem, bool with_fp8, Compiler& compiler);

  const Problem& problem() const { return problem_; }
  const Stream& stream() const { return stream_; }
  const Weights& weights() const { return weights_; }
  const Module& judge() const { return judge_; }
  Dtype fp8_dtype() const;  // fp8_block unless the problem says fp8_tensor

  std::unique_ptr<TokenBatch> make_batch(const Problem& problem, int num_routings);

  // Enqueues what a call begins with: sorts a routing's slots for these steps' tile heights, of
  // which one may be null. `begins_call`: and whatever else a call's first launch does, which is
  // to quantise x where GEMM1 gathers it in fp8.
  void sort(const GemmStep* gemm1, const GemmStep* gemm2, bool begins_call, TokenBatch& batch,
            int routing);
  // Reserves what a call with these steps needs; not allowed while capturing.
  void prepare(Stage stage, const GemmStep* gemm1, const GemmStep* gemm2, TokenBatch& batch);
  // Sorts every routing for these steps' tile heights, and packs the reference's activation as
  // routing 0 has it where gemm1 is null: what a GEMM stage alone finds done.
  void sort_all(const GemmStep* gemm1, const GemmStep* gemm2, TokenBatch& batch);
  // Enqueues one call. gemm1: quantising or packing of x, GEMM1 and activation; gemm2: GEMM2 on the
  // reference's activation and the weighted sum; layer: everything. Unused steps are null.
  void enqueue(Stage stage, const GemmStep* gemm1, const GemmStep* gemm2, TokenBatch& batch,
               int routing);
  // Where the result of a stage lies that ran on `batch`.
  Matrix result(Stage stage, const GemmStep& last, const TokenBatch& batch) const;
  // Fills every intermediate and output with NaN bytes.
  void poison();

  std::int64_t workspace_bytes() const;

 private:
  static constexpr std::int64_t kSortBlocks = 128;  // at most, where one block does not sort all

  void gemm(Stage stage, const GemmStep& step, TokenBatch& batch, int routing);
  void joined(const GemmStep& gemm1, const GemmStep& gemm2, TokenBatch& batch, int routing);
  void decode(const GemmStep& step, TokenBatch& batch, int routing);
  GemmParams gemm_params(Stage stage, const GemmStep& step, TokenBatch& batch, int routing) const;
  // That any routing can need.
  std::int64_t max_tiles(Stage stage, const GemmLaunch& c, const TokenBatch& batch) const;
  void activate(ActivateInput input, bool to_fp8, const ActivateParams& params);
  // For a GEMM2 that adds to the output: has a launch clear it, and says by how many blocks.
  std::int64_t clear_output(const GemmStep* gemm2, const TokenBatch& batch,
                            SortParams& params) const;
  // x to fp8, or copied to the slots' positions, or both.
  ActivateParams x_rows(const GemmStep& gemm1, const TokenBatch& batch, int routing) const;
  std::int64_t activate_blocks(bool to_fp8, const ActivateParams& params, int threads) const;
  LaunchShape shape(std::int64_t grid, unsigned threads) const;

  Gpu gpu_;
  Problem problem_;
  Stream stream_;
  Module small_;
  Module judge_;
  Weights weights_;
  bool overlap_ = false;
  // Workspace of one call, reused by the next: calls on one stream follow each other.
  Buffer x_packed_, x_packed_scale_;                     // [slots, H]
  Buffer gate_up_;                                       // bf16 [slots, 2I] or fp32 partial sums
  Buffer activation_, activation_q_, activation_scale_;  // [slots, I], packed
  Buffer y_;                                             // bf16 [slots, H] or fp32 partial sums
  Buffer out_;                                           // bf16 [T, H]
  Buffer decode_counters_;  // [2] for each number of blocks an SM: see decode::Params
  Buffer tickets_;          // of both GEMMs, 0 between launches
  Buffer tiles_done_;       // int [slots], of joined GEMMs
};

// Throws Error(device) saying how much memory the layer needs when it is more than `free_bytes`.
void check_fits(const Problem& problem, bool with_fp8, double free_bytes);

// Largest number of row tiles any routing can need.
std::int64_t max_row_tiles(std::int64_t num_slots, std::int64_t num_experts, int block_m);

}  // namespace moetune
