// Which tiles a block of a persistent grid takes.
#pragma once

#include "common/sm90.cuh"
#include "common/walk.cuh"

namespace moetune {

// The first by its number, further ones by tickets, so that tiles begin in the order of the walk,
// however long each takes, and those that share weights or rows find them in L2. A cluster walks
// as one block.
template <int kColumnTiles, int kCluster>
struct TicketWalk {
  const GemmParams& p;
  int row_tiles;

  // Gives the block's first tile, if there is one, too: what it needs is read in one go.
  __device__ __forceinline__ TicketWalk(const GemmParams& params, Tile& tile) : p(params) {
    const RowTile at = load_row_tile(p, kColumnTiles, first());
    row_tiles = load_past_l1(p.num_tiles);
    if (first() < size()) tile = find_tile(p, row_tiles, kColumnTiles, first(), at);
  }
  __device__ __forceinline__ int first() const { return blockIdx.x / kCluster; }
  __device__ __forceinline__ int blocks() const { return gridDim.x / kCluster; }
  __device__ __forceinline__ int size() const { return row_tiles * kColumnTiles; }
  __device__ __forceinline__ Tile find(int index) const {
    return find_tile(p, row_tiles, kColumnTiles, index, load_row_tile(p, kColumnTiles, index));
  }
  __device__ __forceinline__ int take_ticket() const {
    return blocks() + add_relaxed(p.tickets, 1);
  }
  // This block has its last ticket; the last block of all sets the counters back.
  __device__ __forceinline__ void leave() const {
    if (add_relaxed(p.tickets + 1, 1) != blocks() - 1) return;
    p.tickets[0] = 0;
    p.tickets[1] = 0;
  }
};

}  // namespace moetune
