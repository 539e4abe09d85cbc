// Which tiles of pairs there are, and which block has which: all of them in order, row of tiles after row of tiles, cut
// into runs of `share` tiles, one for each block of a persistent grid. Symmetric: a row of tiles begins where it meets
// the diagonal.
//
// So the blocks that share a row of tiles, or a column, follow one another, and what each of them leaves of a line can be
// found, and merged in order, by counting (for_owners).
#pragma once

#include "cuda/hopper.h"
#include "fastfuse/cuda_pair.h"

namespace fastfuse::cuda {

using namespace hopper;

struct PairTiles {
  int row_begin, row_end, col_end;  // tiles
  bool symmetric;
  int blocks, share;

  FF_HOST_DEVICE int first_col(int row) const { return symmetric ? row * kPairBlockM / kPairBlockN : 0; }
  // Tiles of the rows of tiles [0, row).
  FF_HOST_DEVICE int before(int row) const {
    static_assert(kPairBlockN == 2 * kPairBlockM);
    return row * col_end - (symmetric ? (row - 1) * (row - 1) / 4 : 0);  // sum of row / 2
  }
  FF_HOST_DEVICE int count() const { return before(row_end) - before(row_begin); }
  FF_HOST_DEVICE int owner(int row, int col) const {
    return (before(row) - before(row_begin) + col - first_col(row)) / share;
  }
};

// rows: [first_row, first_row + rows) of pairs.
inline cudaError_t make_pair_tiles(PairTiles* tiles, int first_row, int rows, int cols, bool symmetric) {
  tiles->row_begin = first_row / kPairBlockM;
  tiles->row_end = (first_row + rows + kPairBlockM - 1) / kPairBlockM;
  tiles->col_end = (cols + kPairBlockN - 1) / kPairBlockN;
  tiles->symmetric = symmetric;
  const int count = tiles->count();
  const cudaError_t error = persistent_blocks(count, &tiles->blocks);
  if (error != cudaSuccess) return error;
  tiles->share = (count + tiles->blocks - 1) / tiles->blocks;
  tiles->blocks = (count + tiles->share - 1) / tiles->share;
  return cudaSuccess;
}

// A block's walk along its run.
struct TileWalk {
  int row, col, left;

  FF_DEVICE TileWalk(const PairTiles& tiles, int block) {
    int skipped = block * tiles.share;
    left = tiles.count() - skipped;
    if (left > tiles.share) left = tiles.share;
    row = tiles.row_begin;
    while (skipped >= tiles.col_end - tiles.first_col(row)) skipped -= tiles.col_end - tiles.first_col(row++);
    col = tiles.first_col(row) + skipped;
  }
  FF_DEVICE void next(const PairTiles& tiles) {
    left--;
    if (++col == tiles.col_end) col = tiles.first_col(++row);
  }
  // Whether the run meets the tile's columns for the first time.
  FF_DEVICE bool first_meeting(const PairTiles& tiles, int block) const {
    return row == tiles.row_begin || tiles.owner(row - 1, col) != block;
  }
};

// body(block) for every block that has tiles of a row of tiles, or of a column of tiles, in order.
template <class Body>
FF_DEVICE void for_owners_of_row(const PairTiles& tiles, int row, const Body& body) {
  const int last = tiles.owner(row, tiles.col_end - 1);
  for (int block = tiles.owner(row, tiles.first_col(row)); block <= last; block++) body(block);
}
template <class Body>
FF_DEVICE void for_owners_of_col(const PairTiles& tiles, int col, const Body& body) {
  int last = -1;
  for (int row = tiles.row_begin; row < tiles.row_end && tiles.first_col(row) <= col; row++) {
    const int block = tiles.owner(row, col);
    if (block != last) body(block);
    last = block;
  }
}

}  // namespace fastfuse::cuda
