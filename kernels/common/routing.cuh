// Reads what routing.hpp describes.
#pragma once

#include "common/ptx.cuh"
#include "common/routing.hpp"

namespace moetune {

__device__ __forceinline__ i64 load_id(const ExpertIds& e, int slot) {
  return e.are_int64 != 0 ? static_cast<const i64*>(e.ids)[slot]
                          : static_cast<const int*>(e.ids)[slot];
}

// This GPU's expert for an id, or -1.
__device__ __forceinline__ int local_expert(const ExpertIds& e, i64 id) {
  if (e.map != nullptr) id = id >= 0 && id < e.map_size ? e.map[id] : -1;
  return id >= 0 && id < e.num_experts ? static_cast<int>(id) : -1;
}
__device__ __forceinline__ int expert_of(const ExpertIds& e, int slot) {
  return local_expert(e, load_id(e, slot));
}

__device__ __forceinline__ float weight_of(const RoutingWeights& w, int slot) {
  return w.are_bf16 != 0 ? bf16_low(static_cast<const u16*>(w.weights)[slot])
                         : static_cast<const float*>(w.weights)[slot];
}

}  // namespace moetune
