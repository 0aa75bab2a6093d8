// What one call of a layer launches: kernels in order, on which tensors, with the bytes and flops
// of each. Plain values without CUDA: built and tested without a GPU, run by runtime/executor.hpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "core/problem.hpp"
#include "core/trial.hpp"
#include "kernels/source.hpp"

namespace moetune {

enum class Role {
  input,    // x, ids, routing weights: the caller's
  weight,   // the caller's, the same at every call
  output,   // the caller's
  scratch,  // lies in the call's workspace; no call needs what another left there
  counter,  // device memory that is 0 before the first call and that calls leave ready for the
            // next; calls that may overlap need one each
};

// Index of a tensor in LayerProgram::tensors. Those of the caller come first, under these names, in
// every program; 0 bytes where a program does not use one.
using TensorId = int;
namespace tensor {
enum : TensorId {
  x,             // bf16 [T, H]
  topk_ids,      // int32 or int64 [T, K]
  topk_weights,  // fp32 or bf16 [T, K]
  expert_map,    // int32: this GPU's expert for each id
  w13,           // bf16 or e4m3 [E, 2I, H]
  w13_scale,     // fp32, fp8 only
  w2,            // [E, H, I]
  w2_scale,
  out,  // bf16 [T, H]
  num_external
};
}  // namespace tensor

struct TensorSpec {
  std::string name;
  Role role = Role::scratch;
  std::int64_t bytes = 0;
};

// A place in an argument's bytes that holds a device address: of `tensor`, `tensor_offset` bytes
// on.
struct Pointer {
  std::size_t offset = 0;
  TensorId tensor = 0;
  std::int64_t tensor_offset = 0;
};

// A matrix that the copy engine (TMA) reads: see cuda/tensor_map.hpp.
struct TensorMapSpec {
  TensorId tensor = -1;  // -1: no matrix, the kernel does not look at the map
  std::int64_t rows = 0, columns = 0, pitch = 0;  // elements
  std::int64_t element_bytes = 0;
  int box_rows = 0;
  int promotion = 256;
};

// A kernel's argument, passed by value: bytes with addresses in them, or a tensor map.
struct Argument {
  std::vector<std::byte> bytes;
  std::vector<Pointer> pointers;
  std::optional<TensorMapSpec> map;
};

enum class Access { read, write, read_write };
struct Use {
  TensorId tensor = 0;
  Access access = Access::read;
};

struct Grid {
  unsigned x = 1, y = 1;
  unsigned threads = 0;     // of a block
  unsigned smem_bytes = 0;  // dynamic, of a block
  unsigned cluster = 1;     // blocks
  bool overlap = false;     // programmatic dependent launch
};

// What a kernel must move and compute at least.
struct Work {
  std::string step;                   // "sort, quantise x", "GEMM1", ...
  std::string kernel;                 // the function's name, or how it begins
  double bytes = 0;                   // inputs and outputs beside weights, each once
  double weight_bytes_an_expert = 0;  // of each expert that has rows
  double flops = 0;                   // of products
  bool fp8 = false;                   // products of e4m3
  // GEMMs of tiles: rows of a tile (0: not told), tiles that cover the output's columns, and tiles
  // that are worked on at a time (0: any number).
  int block_m = 0;
  std::int64_t column_tiles = 0;
  std::int64_t tiles_at_once = 0;
};

struct KernelRef {
  int source = 0;  // in LayerProgram::sources
  std::string expression;
};

struct Op {
  KernelRef kernel;
  Grid grid;
  std::vector<Argument> arguments;
  std::vector<Use> uses;
  Work work;
};

// Where a program leaves its result, as the check reads it.
struct ProgramResult {
  TensorId data = tensor::out;
  TensorId scales = -1;   // -1: bf16
  int scale_columns = 1;  // that share a scale
  std::int64_t scale_pitch = 0;
  bool by_position = false;  // rows lie in the order of positions, not of tokens
};

// How the caller's tensors lie. Pitches in elements, 0: rows follow each other without gaps.
struct CallLayout {
  std::int64_t x_pitch = 0, out_pitch = 0, w13_pitch = 0, w2_pitch = 0;
  bool int64_ids = false;                          // else int32
  bool bf16_topk_weights = false;                  // else fp32
  std::int64_t expert_map_size = 0;                // 0: ids are this GPU's, there is no map
  bool operator<(const CallLayout& other) const {  // for maps
    const auto key = [](const CallLayout& l) {
      return std::tuple(l.x_pitch, l.out_pitch, l.w13_pitch, l.w2_pitch, l.int64_ids,
                        l.bf16_topk_weights, l.expert_map_size);
    };
    return key(*this) < key(other);
  }
};

struct LayerProgram {
  Problem problem;
  Stage stage = Stage::layer;
  bool fp8 = false;
  std::vector<TensorSpec> tensors;
  std::vector<KernelSource> sources;
  // A GEMM stage alone finds its slots sorted: these ops do that, once for each routing, and are no
  // part of a call.
  std::vector<Op> setup;
  std::vector<Op> ops;
  ProgramResult result;

  // -1 where there is none of this name.
  TensorId find(std::string_view name) const;
  // Whether one of the setup's ops writes it.
  bool is_set_up(TensorId id) const;
};

inline constexpr int kMaxTensors = 32;  // of a program
inline constexpr std::int64_t kTensorAlignment = 256;

// Where scratch tensors lie in a call's workspace: offsets by TensorId, -1 for those of other
// roles. `of_setup`: those that the setup writes, which a measurement keeps for each routing, or
// the others.
struct WorkspaceLayout {
  std::vector<std::int64_t> offsets;
  std::int64_t bytes = 0;
};
WorkspaceLayout workspace_layout(const LayerProgram& program, bool of_setup = false);
// Bytes of all scratch tensors.
std::int64_t workspace_bytes(const LayerProgram& program);

// "" or what is wrong with the program itself: an op that reads scratch which nothing wrote before,
// an address outside its tensor, an op that writes an input or a weight. For tests.
std::string program_defect(const LayerProgram& program);

}  // namespace moetune
