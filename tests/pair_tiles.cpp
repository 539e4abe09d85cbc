// The order of the tiles of pairs, for tests to look at.
#include "cuda/pair_tiles.cuh"

namespace {

using namespace fastfuse::cuda;

PairTiles tiles_of(int row_begin, int row_end, int col_end, bool symmetric, int blocks) {
  PairTiles tiles{row_begin, row_end, col_end, symmetric, 0, col_end, 0, 0};
  cut_tiles(&tiles, blocks < tiles.count() ? blocks : tiles.count(), kPairSegmentBits);
  return tiles;
}

}  // namespace

#define FF_EXPORT extern "C" __attribute__((visibility("default")))

// Of each tile of each block's walk: block, row, col, first_meeting, row_part of row_parts, and the row and how many of
// its tiles are left as consumers count them. Returns how many tiles. to: [tiles][8]
FF_EXPORT int walks(int row_begin, int row_end, int col_end, bool symmetric, int blocks, int* to) {
  const PairTiles tiles = tiles_of(row_begin, row_end, col_end, symmetric, blocks);
  int* out = to;
  for (int block = 0; block < tiles.blocks; block++) {
    int row = tiles.first_row(block), left = tiles.tiles_of_row(block, row);
    for (TileWalk at(tiles, block); at.there(tiles, block); at.next(tiles, block)) {
      if (left == 0) left = tiles.tiles_of_row(block, ++row);
      const int all[8] = {
          block, at.row, at.col, at.first_meeting(tiles, block), tiles.row_part(block, at.row), tiles.row_parts(),
          row,   left--};
      for (int number : all) *out++ = number;
    }
  }
  return int(out - to) / 8;
}

// The owners of a row of tiles, or of a column. Returns how many.
FF_EXPORT int owners(int row_begin, int row_end, int col_end, bool symmetric, int blocks, bool of_row, int line,
                     int* to) {
  const PairTiles tiles = tiles_of(row_begin, row_end, col_end, symmetric, blocks);
  int count = 0;
  const auto add = [&](int block) { to[count++] = block; };
  if (of_row) {
    for_owners_of_row(tiles, line, add);
  } else {
    for (int row = tiles.row_begin, last = -1; row < tiles.row_end_of(line); row++) {
      const int block = tiles.owner(row, line);
      if (block != last) add(block);
      last = block;
    }
  }
  return count;
}
