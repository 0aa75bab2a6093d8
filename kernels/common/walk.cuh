// The order in which the tiles of a grouped GEMM are taken.
#pragma once

#include "common/params.hpp"
#include "common/ptx.cuh"

namespace moetune {

struct Tile {
  RowTile rows;
  int column_tile;
};

// Tile `index` of row_tiles * column_tiles, given `at_index`, which load_row_tile(p, column_tiles,
// index) read: apart, so that it can be under way together with row_tiles.
//
// Row-major: an expert's row tiles in groups of about the same size, each group taken column by
// column, so that its rows and the columns' weights stay in L2 while they are needed. Groups end
// with their expert: no weights are read for the sake of a few rows of the next.
__device__ __forceinline__ RowTile load_row_tile(const GemmParams& p, int column_tiles, int index) {
  const int4 v = load_past_l1(reinterpret_cast<const int4*>(p.tiles) + index / column_tiles);
  return {v.x, v.y, v.z, v.w};
}
__device__ __forceinline__ Tile find_tile(const GemmParams& p, int row_tiles, int column_tiles,
                                          int index, const RowTile& at_index) {
  const int at = index / column_tiles;
  int row_tile = at;
  int column_tile = index - at * column_tiles;
  const int count = at_index.group >> 16;
  if (p.column_major) {
    column_tile = index / row_tiles;
    row_tile = index - column_tile * row_tiles;
  } else if (count > 1) {
    const int first = at - (at_index.group & 0xffff);
    const int within = index - first * column_tiles;
    column_tile = within / count;
    row_tile = first + within - column_tile * count;
  }
  if (row_tile == at) return {at_index, column_tile};
  return {load_row_tile(p, 1, row_tile), column_tile};
}

}  // namespace moetune
