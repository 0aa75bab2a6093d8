// A whole MoE layer in one launch, for a handful of tokens, where launches and the gaps between
// them take longer than anything but reading the weights.
//
// A layer's life. Each block sorts the slots for itself: tiles of at most 8 rows of one expert, in
// order of experts. GEMM1's work is tiles times items of 8 gate rows and the 8 up rows that go with
// them, GEMM2's is tiles times items of 16 rows of w2; each is cut into as many equal portions as
// there are blocks. Portions go out by tickets, GEMM1's first, so that whoever has one of GEMM2's
// knows that GEMM1's are in the hands of blocks that run, and may wait for them; the weights do not
// wait. Of a portion the warps take steps in turns (16 rows, step_bytes of K), and each streams its
// weights through a ring of its own: a lane copies the 16 bytes that it will itself multiply, so
// that a stage needs no barrier. An mma has the weights as its M and the rows as its N; which bytes
// of K are multiplied when does not matter as long as both operands agree, so a lane's 16 bytes are
// its fragment as they lie. fp8: the block quantises a tile's rows into shared memory first. Warps
// add their sums in shared memory; then GEMM1's items become activations (SwiGLU), GEMM2's are
// weighted and added to their tokens. The output is cleared by GEMM1's portions.
#include "common/params.hpp"
#include "common/routing.cuh"
#include "common/sm90.cuh"
#include "decode/config.hpp"

namespace moetune::decode {

constexpr int kNone = 0x7fffffff;  // above all experts and places: of slots that are another GPU's

// Of GEMM1 (kFirst) or GEMM2.
template <Config C, bool kFirst>
struct Gemm {
  static constexpr int kRowBytes = row_bytes(C, kFirst);
  static constexpr int kSteps = (kRowBytes + C.step_bytes - 1) / C.step_bytes;
  static constexpr int kItems = kFirst ? C.intermediate_size / 8 : C.hidden_size / kWeightRows;
  static constexpr int kWeightRowsAll = kFirst ? 2 * C.intermediate_size : C.hidden_size;
  // Weight row of an item that lies in the fragment's row `g` or `g` + 8 (`high`): GEMM1's are gate
  // and up of one column, GEMM2's neighbours.
  static __device__ __forceinline__ int weight_row(int item, int g, bool high) {
    if (kFirst) return (high ? C.intermediate_size : 0) + item * 8 + g;
    return item * kWeightRows + 2 * g + (high ? 1 : 0);
  }
};

__device__ __forceinline__ u64 take_ticket(u64* counter) {
  u64 before;
  asm volatile("atom.relaxed.gpu.global.add.u64 %0, [%1], 1;\n"
               : "=l"(before)
               : "l"(counter)
               : "memory");
  return before;
}
__device__ __forceinline__ void add_release(u64* counter, u64 value) {
  asm volatile("red.release.gpu.global.add.u64 [%0], %1;\n" ::"l"(counter), "l"(value) : "memory");
}
__device__ __forceinline__ u64 load_acquire(const u64* counter) {
  u64 value;
  asm volatile("ld.acquire.gpu.global.u64 %0, [%1];\n" : "=l"(value) : "l"(counter) : "memory");
  return value;
}

struct Tile {
  int expert, first, rows;  // first: place among the sorted slots
};

// What a block's sorting leaves behind.
struct Sorted {
  u32 tiles[kMaxSlots];  // packed
  float weights[kMaxSlots];
  u16 slots[kMaxSlots];  // in order of experts
  u64 first_ticket;      // of this launch
  int num_tiles;
  int tickets[2];  // the next portion's, for even and odd portions in turn

  __device__ __forceinline__ Tile tile(int index) const {
    const u32 t = tiles[index];
    return {static_cast<int>(t >> 16), static_cast<int>(t >> 4 & 0xfff), static_cast<int>(t & 15)};
  }
};
static_assert(sizeof(Sorted) + 100 <= kSortedBytes && kMaxSlots < 1 << 12 && kMaxBlockM < 16);
constexpr int kUnknown = -1;
constexpr int kBeingTaken = -2;

// `scratch`: three numbers a slot, ids and tiles' first places padded to fours.
template <Config C>
__device__ __forceinline__ void sort_slots(const Params& p, int* scratch, Sorted& s) {
  int* const ids = scratch;
  int* const leaders = ids + kMaxSlots;  // places of tiles' first rows, kNone for other slots
  float* const weights = reinterpret_cast<float*>(leaders + kMaxSlots);
  const int padded = (p.num_slots + 3) / 4 * 4;
  for (int i = threadIdx.x; i < padded; i += num_threads(C)) {
    const bool valid = i < p.num_slots;
    // Both loads are on their way before either is looked at: they come from memory.
    const float weight = valid ? weight_of(p.weights, i) : 0;
    const int id = valid ? expert_of(p.ids, i) : -1;
    weights[i] = weight;
    ids[i] = id >= 0 ? id : kNone;
    leaders[i] = kNone;
  }
  __syncthreads();
  // Four lanes share what a slot is compared with.
  constexpr int kLanes = 4;
  const int part = threadIdx.x % kLanes;
  const auto for_each_of_part = [&](const int* list, auto&& body) {
#pragma unroll 4
    for (int j = part * 4; j < padded; j += kLanes * 4) {
      const int4 v = *reinterpret_cast<const int4*>(list + j);
      body(j, v.x);
      body(j + 1, v.y);
      body(j + 2, v.z);
      body(j + 3, v.w);
    }
  };
  const auto sum_of_parts = [](int value) {
    value += __shfl_xor_sync(0xffffffffu, value, 1);
    return value + __shfl_xor_sync(0xffffffffu, value, 2);
  };
  constexpr int kStride = num_threads(C) / kLanes;
  for (int first = 0; first < p.num_slots; first += kStride) {
    const int i = first + threadIdx.x / kLanes;
    const int id = i < padded ? ids[i] : kNone;
    int lower = 0;   // slots of lower experts
    int before = 0;  // slots of this one, before this
    for_each_of_part(ids, [&](int j, int other) {
      lower += other < id;
      before += other == id && j < i;
    });
    lower = sum_of_parts(lower);
    before = sum_of_parts(before);
    if (part != 0 || id == kNone) continue;
    const int place = lower + before;
    s.slots[place] = static_cast<u16>(i);
    s.weights[place] = weights[i];
    if (before % C.block_m == 0) leaders[i] = place;
  }
  __syncthreads();
  for (int first = 0; first < p.num_slots; first += kStride) {
    const int i = first + threadIdx.x / kLanes;
    const int place = i < padded ? leaders[i] : kNone;
    const int id = i < padded ? ids[i] : kNone;
    int index = 0;  // tiles before this one
    int end = 0;    // of the expert's slots
    int num_tiles = 0;
    for_each_of_part(leaders, [&](int, int other) {
      num_tiles += other != kNone;
      index += other < place;
    });
    for_each_of_part(ids, [&](int, int other) { end += other <= id; });
    index = sum_of_parts(index);
    end = sum_of_parts(end);
    num_tiles = sum_of_parts(num_tiles);
    if (part != 0) continue;
    if (place != kNone) {
      s.tiles[index] = static_cast<u32>(id) << 16 | place << 4 | min(C.block_m, end - place);
    }
    if (i == 0) s.num_tiles = num_tiles;
  }
  __syncthreads();
}

// How a portion's items are walked: in groups of at most kItemsAtOnce and of two tiles, of which
// the warp has every num_warps-th step: together the warps read neighbouring bytes. Items are
// counted over all tiles.
struct Cursor {
  int item, end;        // the group's first; the portion's end
  int count;            // items of the group; 0: the portion is done
  int step, num_steps;  // the warp's next, counted from the group's first item; the group's
};

template <Config C, bool kFirst>
__device__ __forceinline__ void set_group(Cursor& c) {
  using G = Gemm<C, kFirst>;
  const int two_tiles = (c.item / G::kItems + 2) * G::kItems - c.item;
  c.count = min(min(c.end - c.item, two_tiles), kItemsAtOnce);
  c.step = threadIdx.x / 32;
  c.num_steps = c.count * G::kSteps;
}
template <Config C, bool kFirst>
__device__ __forceinline__ void next_group(Cursor& c) {
  c.item += c.count;
  set_group<C, kFirst>(c);
}
template <Config C, bool kFirst>
__device__ __forceinline__ Cursor portion(int index, int num_portions, int num_tiles) {
  // At most 2^10 tiles, 2^11 items in each for any layer that fits, 2^10 portions.
  const u32 items = static_cast<u32>(num_tiles) * Gemm<C, kFirst>::kItems;
  Cursor c{};
  c.item = static_cast<int>(items * static_cast<u32>(index) / num_portions);
  c.end = static_cast<int>(items * static_cast<u32>(index + 1) / num_portions);
  set_group<C, kFirst>(c);
  return c;
}

template <Config C>
struct Shared {
  u32 base;
  __device__ __forceinline__ u32 stage(int slot) const {
    const int warp = threadIdx.x / 32;
    return base + (warp * C.num_stages + slot) * stage_bytes(C);
  }
  __device__ __forceinline__ u32 scales(int slot) const {
    const int warp = threadIdx.x / 32;
    return base + C.num_warps * C.num_stages * stage_bytes(C) +
           (warp * C.num_stages + slot) * kStageScaleBytes;
  }
  __device__ __forceinline__ u32 sums(int parity) const {
    return base + smem_bytes(C) - rows_bytes(C) - sum_bytes(C) + parity * (sum_bytes(C) / 2);
  }
  // Row r of the group's first or second tile, and the scales of a tile's rows.
  __device__ __forceinline__ u32 row(int tile, int r) const {
    return base + smem_bytes(C) - rows_bytes(C) + (tile * C.block_m + r) * row_pitch(C);
  }
  __device__ __forceinline__ u32 row_scales(int tile, int group) const {
    return row(2, 0) + (tile * scale_groups(C) + group) * (kMaxBlockM * 4);
  }
};

template <Config C, bool kFirst>
__device__ __forceinline__ void load_step(const Params& p, const Shared<C>& shared,
                                          const Sorted& sorted, const Cursor& c, int slot) {
  using G = Gemm<C, kFirst>;
  const int lane = threadIdx.x % 32;
  const int counted = c.item + c.step / G::kSteps;
  const int expert = sorted.tile(counted / G::kItems).expert;
  const int item = counted % G::kItems;
  const int at = c.step % G::kSteps * C.step_bytes;
  const u8* const w = static_cast<const u8*>(kFirst ? p.w13 : p.w2) + lane % 4 * 16;
  constexpr int kChunks = C.step_bytes / kChunkBytes;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const i64 row =
        static_cast<i64>(expert) * G::kWeightRowsAll + G::weight_row(item, lane / 4, half == 1);
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      const int k = at + i * kChunkBytes;
      const bool in_k = G::kRowBytes % C.step_bytes == 0 || k < G::kRowBytes;
      cp_async_16(shared.stage(slot) + (half * kChunks + i) * 512 + lane * 16,
                  w + row * G::kRowBytes + (in_k ? k : 0), in_k);
    }
  }
  if constexpr (C.fp8 == 1) {
    constexpr int kGroups = G::kRowBytes / kScaleGroup;
    if (lane < 4) {
      const int group = at / kScaleGroup + lane % 2;
      const int block = G::weight_row(item, 0, lane / 2 == 1) / kScaleGroup;
      const float* const scale = kFirst ? p.w13_scale : p.w2_scale;
      const bool in_k = lane % 2 < C.step_bytes / kScaleGroup && group < kGroups;
      const i64 row = static_cast<i64>(expert) * (G::kWeightRowsAll / kScaleGroup) + block;
      cp_async_4(shared.scales(slot) + lane * 4, scale + row * kGroups + (in_k ? group : 0), in_k);
    }
  }
}

__device__ __forceinline__ uint4 load_row_16(const u8* address, bool valid) {
  uint4 v = make_uint4(0, 0, 0, 0);
  if (valid) {
    asm volatile("ld.global.v4.u32 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(address)
                 : "memory");
  }
  return v;
}

// Adds a stage's products to `sums`. `tile`: 0 or 1; `row`: where rows are not in shared memory,
// the lane's.
template <Config C, bool kFirst>
__device__ __forceinline__ void multiply_step(const Shared<C>& shared, int slot, int at, int tile,
                                              const u8* row, int rows, float (&sums)[4]) {
  using G = Gemm<C, kFirst>;
  const int lane = threadIdx.x % 32;
  const int g = lane / 4;
  const int q = lane % 4;
  constexpr int kChunks = C.step_bytes / kChunkBytes;
  uint4 b[kChunks];
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    const int k = at + i * kChunkBytes;
    const bool valid = g < rows && (G::kRowBytes % C.step_bytes == 0 || k < G::kRowBytes);
    if constexpr (rows_bytes(C) > 0) {
      b[i] = valid ? load_shared_16(shared.row(tile, g) + k + q * 16) : make_uint4(0, 0, 0, 0);
    } else {
      b[i] = load_row_16(row + k + q * 16, valid);
    }
  }
  const u32 stage = shared.stage(slot) + lane * 16;
  if constexpr (C.fp8 == 1) {
#pragma unroll
    for (int group = 0; group < C.step_bytes / kScaleGroup; ++group) {
      if (G::kRowBytes % C.step_bytes != 0 && at + group * kScaleGroup >= G::kRowBytes) break;
      float products[4] = {};
#pragma unroll
      for (int i = group * 2; i < group * 2 + 2; ++i) {
        const uint4 low = load_shared_16(stage + i * 512);
        const uint4 high = load_shared_16(stage + (kChunks + i) * 512);
        Fp8Fragment<4> a;
        Fp8Fragment<2> rows_of;
        const u32 a0[4] = {low.x, high.x, low.y, high.y};
        const u32 b0[2] = {b[i].x, b[i].y};
        unpack_fp8(a0, a);
        unpack_fp8(b0, rows_of);
        mma_fp8(products, a, rows_of);
        const u32 a1[4] = {low.z, high.z, low.w, high.w};
        const u32 b1[2] = {b[i].z, b[i].w};
        unpack_fp8(a1, a);
        unpack_fp8(b1, rows_of);
        mma_fp8(products, a, rows_of);
      }
      const u32 scales = shared.scales(slot) + group * 4;
      const u32 of_rows = shared.row_scales(tile, at / kScaleGroup + group) + q * 8;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float weight = __uint_as_float(load_shared_u32(scales + i / 2 * 8));
        const float of_row = __uint_as_float(load_shared_u32(of_rows + i % 2 * 4));
        sums[i] += products[i] * (weight * of_row);
      }
    }
  } else {
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      const uint4 low = load_shared_16(stage + i * 512);
      const uint4 high = load_shared_16(stage + (kChunks + i) * 512);
      mma_bf16(sums, {low.x, high.x, low.y, high.y}, {b[i].x, b[i].y});
      mma_bf16(sums, {low.z, high.z, low.w, high.w}, {b[i].z, b[i].w});
    }
  }
}

__device__ __forceinline__ void add_shared(u32 address, float value) {
  asm volatile("red.shared.add.f32 [%0], %1;\n" ::"r"(address), "f"(value) : "memory");
}

// A lane's sums are of weight rows g and g + 8, token rows 2q and 2q + 1.
template <Config C>
__device__ __forceinline__ void add_sums(u32 item, int rows, float (&sums)[4]) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + i / 2 * 8;
    const int token = lane % 4 * 2 + i % 2;
    if (token < rows) add_shared(item + (row * C.block_m + token) * 4, sums[i]);
    sums[i] = 0;
  }
}
// Reads a sum and makes it 0 for the next group.
template <Config C>
__device__ __forceinline__ float take_sum(u32 item, int row, int token) {
  const u32 address = item + (row * C.block_m + token) * 4;
  const float value = __uint_as_float(load_shared_u32(address));
  store_shared(address, 0u);
  return value;
}

__device__ __forceinline__ float max_of_16(float value) {
#pragma unroll
  for (int distance = 8; distance > 0; distance /= 2) {
    value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, distance));
  }
  return value;
}

// Which of the GEMM's rows the slot at this place has.
template <Config C, bool kFirst>
__device__ __forceinline__ i64 row_at(const Sorted& sorted, int place) {
  return kFirst ? sorted.slots[place] / C.top_k : place;
}

// Copies the rows of up to two tiles to shared memory; fp8: as e4m3, with a scale for 128 values
// each. 16 lanes take 128 values, several times over, so that their loads overlap: load() the first
// of them, store() all.
template <Config C, bool kFirst>
struct RowStager {
  static constexpr int kColumns = kFirst ? C.hidden_size : C.intermediate_size;
  static constexpr int kGroups = (kColumns + kScaleGroup - 1) / kScaleGroup;
  static constexpr int kAtOnce = 4;
  static constexpr int kTeams = C.num_warps * 2;

  const Params& p;
  const Shared<C>& shared;
  const Sorted& sorted;
  const Tile tiles[2];
  uint4 values[kAtOnce];

  __device__ __forceinline__ int num() const { return (tiles[0].rows + tiles[1].rows) * kGroups; }
  __device__ __forceinline__ static int team() { return threadIdx.x / 16; }
  __device__ __forceinline__ static int column() { return threadIdx.x % 16 * 8; }

  __device__ __forceinline__ void load(int first = 0) {
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int index = first + team() + i * kTeams;
      const int at = index % kGroups * kScaleGroup + column();
      const int r = index / kGroups;
      const int place =
          r >= tiles[0].rows ? tiles[1].first + r - tiles[0].rows : tiles[0].first + r;
      const bool valid = index < num() && at < kColumns;
      const i64 row = valid ? row_at<C, kFirst>(sorted, place) : 0;
      const u8* const source = static_cast<const u8*>(kFirst ? p.x : p.activation);
      values[i] = load_row_16(source + (row * kColumns + at) * 2, valid);
    }
  }
  __device__ __forceinline__ void store() {
    for (int first = 0; first < num(); first += kTeams * kAtOnce) {
      if (first > 0) load(first);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        // A whole warp's teams leave together: its lanes exchange values below.
        if (first + (team() & ~1) + i * kTeams >= num()) break;
        store_16_lanes(first + team() + i * kTeams, values[i]);
      }
    }
  }
  __device__ __forceinline__ void store_16_lanes(int index, uint4 v) {
    const int at = index % kGroups * kScaleGroup + column();
    const bool second = index / kGroups >= tiles[0].rows;
    const int r = index / kGroups - (second ? tiles[0].rows : 0);
    const u32 to = shared.row(second ? 1 : 0, r);
    if constexpr (C.fp8 == 0) {
      if (index < num() && at < kColumns) store_shared_16(to + at * 2, v.x, v.y, v.z, v.w);
    } else {
      const u32 words[4] = {v.x, v.y, v.z, v.w};
      float amax = 0;
#pragma unroll
      for (const u32 word : words) {
        amax = fmaxf(amax, fmaxf(fabsf(bf16_low(word)), fabsf(bf16_high(word))));
      }
      amax = max_of_16(amax);
      const float scale = amax > 0 ? amax / 448.0f : 1.0f;
      const float inverse = 1.0f / scale;
      u32 packed[4];
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        packed[w] = pack_e4m3(bf16_low(words[w]) * inverse, bf16_high(words[w]) * inverse);
      }
      if (index >= num()) return;
      store_shared(to + at, packed[0] | packed[1] << 16);
      store_shared(to + at + 4, packed[2] | packed[3] << 16);
      if (column() == 0) {
        store_shared(shared.row_scales(second ? 1 : 0, index % kGroups) + r * 4,
                     __float_as_uint(scale));
      }
    }
  }
};

// A group's sums, once all warps have added theirs, become activations or go to the output.
template <Config C, bool kFirst>
__device__ __forceinline__ void end_group(const Params& p, const Sorted& sorted, const Cursor& c,
                                          u32 sums) {
  using G = Gemm<C, kFirst>;
  constexpr int kPerItem = 8 * C.block_m;
  for (int i = threadIdx.x; i < c.count * kPerItem; i += num_threads(C)) {
    const int r = i % kPerItem / 8;
    const int g = i % 8;
    const int counted = c.item + i / kPerItem;
    const Tile tile = sorted.tile(counted / G::kItems);
    const int item = counted % G::kItems;
    if (r >= tile.rows) continue;
    const u32 item_sums = sums + i / kPerItem * item_bytes(C);
    const float low = take_sum<C>(item_sums, g, r);
    const float high = take_sum<C>(item_sums, g + 8, r);
    if (kFirst) {
      const i64 at = static_cast<i64>(tile.first + r) * C.intermediate_size + item * 8 + g;
      static_cast<u16*>(p.activation)[at] = static_cast<u16>(pack_bf16(silu(low) * high, 0));
    } else {
      const int slot = sorted.slots[tile.first + r];
      const float weight = sorted.weights[tile.first + r];
      const i64 at = static_cast<i64>(slot / C.top_k) * C.hidden_size + item * kWeightRows + 2 * g;
      add_two_bf16(static_cast<u16*>(p.out) + at, pack_bf16(low * weight, high * weight));
    }
  }
}

// One block's work. Loads run ahead of what is multiplied, from group to group and from one portion
// to the next.
template <Config C>
struct Block {
  const Params& p;
  const Shared<C> shared;
  Sorted& sorted;
  const int num_portions;  // of each GEMM
  const u64 first_ticket;  // of this launch

  Cursor ahead{};         // walks the steps to load
  int ahead_ticket = -1;  // of which portion
  int num_loaded = 0;     // stages
  int num_multiplied = 0;
  int parity = 0;    // of groups
  int num_done = 0;  // portions

  __device__ __forceinline__ bool is_first(int ticket) const { return ticket < num_portions; }
  __device__ __forceinline__ Cursor start(int ticket) const {
    if (is_first(ticket)) return portion<C, true>(ticket, num_portions, sorted.num_tiles);
    if (ticket < 2 * num_portions) {
      return portion<C, false>(ticket - num_portions, num_portions, sorted.num_tiles);
    }
    return {};
  }

  // The block's next ticket, taken by the first warp that wants it.
  __device__ __forceinline__ int next_ticket() const {
    int ticket = 0;
    if (threadIdx.x % 32 == 0) {
      int* const posted = sorted.tickets + num_done % 2;
      do {
        ticket = atomicCAS(posted, kUnknown, kBeingTaken);
      } while (ticket == kBeingTaken);
      if (ticket == kUnknown) {
        ticket = static_cast<int>(take_ticket(p.counters) - first_ticket);
        atomicExch(posted, ticket);
      }
    }
    return __shfl_sync(0xffffffffu, ticket, 0);
  }

  // Passes over groups in which the warp has no step.
  __device__ __forceinline__ void find_step() {
    while (ahead.count > 0 && ahead.step >= ahead.num_steps) {
      if (is_first(ahead_ticket)) {
        next_group<C, true>(ahead);
      } else {
        next_group<C, false>(ahead);
      }
    }
  }
  // Starts the warp's next loads, of the portion with this ticket or the one after; false when
  // there is nothing to load.
  __device__ __forceinline__ bool load_next(int ticket) {
    find_step();
    if (ahead.count == 0 && ahead_ticket == ticket) {
      ahead_ticket = next_ticket();
      ahead = start(ahead_ticket);
      find_step();
    }
    if (ahead.count == 0) return false;
    const int slot = num_loaded % C.num_stages;
    if (is_first(ahead_ticket)) {
      load_step<C, true>(p, shared, sorted, ahead, slot);
    } else {
      load_step<C, false>(p, shared, sorted, ahead, slot);
    }
    cp_async_commit();
    ahead.step += C.num_warps;
    ++num_loaded;
    return true;
  }

  // A GEMM1 portion's share of what GEMM2 adds to.
  __device__ __forceinline__ void clear_output(int index) const {
    const i64 chunks = static_cast<i64>(p.num_slots / C.top_k) * (C.hidden_size / 8);
    const i64 end = chunks * (index + 1) / num_portions;
    for (i64 i = chunks * index / num_portions + threadIdx.x; i < end; i += num_threads(C)) {
      static_cast<uint4*>(p.out)[i] = make_uint4(0, 0, 0, 0);
    }
  }
  __device__ __forceinline__ void wait_for_gemm1() const {
    if (threadIdx.x == 0) {
      // Of every launch so far: each takes three tickets a block.
      const u64 all = first_ticket / 3 + num_portions;
      while (load_acquire(p.counters + 1) < all) {
      }
    }
    __syncthreads();
  }

  __device__ __forceinline__ void load_ahead(int ticket, int num_stages) {
    while (num_loaded - num_multiplied < num_stages && load_next(ticket)) {
    }
  }
  // For the oldest that has been loaded; those after it may still be on their way.
  __device__ __forceinline__ void wait_for_stage() const {
    const int later = num_loaded - num_multiplied - 1;
    if (later == 0) {
      cp_async_wait<0>();
    } else if (later < C.num_stages - 2) {
      cp_async_wait<1>();
    } else {
      cp_async_wait<C.num_stages - 2>();
    }
  }

  template <bool kFirst>
  __device__ __forceinline__ void multiply_portion(int ticket) {
    using G = Gemm<C, kFirst>;
    const int lane = threadIdx.x % 32;
    int staged = -1;  // the first tile whose rows are in shared memory
    bool began = false;
    for (Cursor c = start(ticket); c.count > 0; next_group<C, kFirst>(c)) {
      const int first_tile = c.item / G::kItems;
      const bool has_second = (c.item + c.count - 1) / G::kItems > first_tile;
      const Tile tiles[2] = {sorted.tile(first_tile),
                             has_second ? sorted.tile(first_tile + 1) : Tile{}};
      const u8* rows[2] = {};
      if constexpr (rows_bytes(C) > 0) {
        if (has_second || first_tile != staged) {
          RowStager<C, kFirst> stager{p, shared, sorted, {tiles[0], tiles[1]}, {}};
          stager.load();  // before the weights, which would hold them up
          if (!began) load_ahead(ticket, steady_stages(C));
          stager.store();
          __syncthreads();
        }
        staged = first_tile;
      } else {
#pragma unroll
        for (int t = 0; t < 2; ++t) {
          const int r = min(lane / 4, max(tiles[t].rows - 1, 0));
          rows[t] = static_cast<const u8*>(kFirst ? p.x : p.activation) +
                    row_at<C, kFirst>(sorted, tiles[t].first + r) * G::kRowBytes;
        }
      }
      if (!began) load_ahead(ticket, steady_stages(C));
      began = true;
      const u32 sums_of = shared.sums(parity);
      float sums[4] = {};
      for (int step = c.step; step < c.num_steps; step += C.num_warps) {
        wait_for_stage();
        __syncwarp();  // scales are other lanes' copies, and the stage before has been read
        load_next(ticket);
        const int item = step / G::kSteps;
        const bool second = (c.item + item) / G::kItems > first_tile;
        const int num_rows = second ? tiles[1].rows : tiles[0].rows;
        multiply_step<C, kFirst>(shared, num_multiplied % C.num_stages,
                                 step % G::kSteps * C.step_bytes, second ? 1 : 0,
                                 second ? rows[1] : rows[0], num_rows, sums);
        ++num_multiplied;
        if (step + C.num_warps >= c.num_steps || (step + C.num_warps) / G::kSteps != item) {
          add_sums<C>(sums_of + item * item_bytes(C), num_rows, sums);
        }
      }
      __syncthreads();
      end_group<C, kFirst>(p, sorted, c, sums_of);
      parity ^= 1;
    }
  }

  __device__ __forceinline__ void run(int ticket) {
    ahead_ticket = ticket;
    ahead = start(ticket);
    while (ticket < 2 * num_portions) {
      const bool first = is_first(ticket);
      if (first) {
        clear_output(ticket);
        multiply_portion<true>(ticket);
      } else {
        load_ahead(ticket, C.num_stages - 1);
        wait_for_gemm1();
        multiply_portion<false>(ticket);
      }
      if (threadIdx.x < 32) next_ticket();
      if (threadIdx.x == 0) sorted.tickets[(num_done + 1) % 2] = kUnknown;
      __syncthreads();
      if (first && threadIdx.x == 0) add_release(p.counters + 1, u64{1});
      ticket = sorted.tickets[num_done % 2];
      __syncthreads();
      ++num_done;
      if (ahead_ticket != ticket) {  // the warp has not asked for it
        ahead_ticket = ticket;
        ahead = start(ticket);
      }
    }
  }
};

template <Config C>
__global__ void __launch_bounds__(num_threads(C), C.blocks_per_sm) moe_layer(const Params p) {
  extern __shared__ __align__(128) u8 smem[];
  __shared__ Sorted sorted;
  const Shared<C> shared{smem_address(smem)};
  for (int i = threadIdx.x; i < sum_bytes(C) / 4; i += num_threads(C)) {
    store_shared(shared.sums(0) + i * 4, 0u);
  }
  wait_for_previous_kernel();
  let_next_kernel_start();
  if (threadIdx.x == num_threads(C) - 32) {  // a warp that has little to sort
    const u64 ticket = take_ticket(p.counters);
    const u64 of_a_launch = 3 * gridDim.x;
    sorted.first_ticket = ticket / of_a_launch * of_a_launch;
    sorted.tickets[1] = static_cast<int>(ticket % of_a_launch);
    sorted.tickets[0] = kUnknown;
  }
  sort_slots<C>(p, reinterpret_cast<int*>(smem), sorted);
  const int ticket = sorted.tickets[1];
  __syncthreads();  // before the block's first thread writes there again
  Block<C> block{p, shared, sorted, static_cast<int>(gridDim.x), sorted.first_ticket};
  block.run(ticket);
}

}  // namespace moetune::decode
