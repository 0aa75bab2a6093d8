// Which experts the tokens chose, as callers have it: the same structs for the host and for NVRTC,
// so this includes nothing.
#pragma once

namespace moetune {

// Ids below 0 or at and above the number of experts, after the map, are another GPU's: their slots
// add nothing and get no place among the sorted ones.
struct ExpertIds {
  const void* ids;  // [num_slots] int32, or int64
  const int* map;   // [map_size] this GPU's expert for each id; null: ids are this GPU's
  int map_size;
  int are_int64;
  int num_experts;  // of this GPU
};

struct RoutingWeights {
  const void* weights;  // [num_slots] fp32, or bf16
  int are_bf16;
};

}  // namespace moetune
