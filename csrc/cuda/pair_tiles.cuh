// Which tiles of pairs there are, which block has which, and in which order.
//
//     segments    1, 2 or 4: column c is column c / segments of segment c % segments, block b belongs to b % segments
//     of one      row of tiles after row of tiles, cut into runs of `share` tiles, one for each of its blocks
//     of a row    from the segment's last column backwards and round, so that the tile at `position` lies
//                 (turn + position - before) % length columns before the last
//     turn        (before of the next row - 1) % share + 1:  the run that finishes the row is at its step t
//                 t % length columns before the last
//
// So whatever its rows, a block is at step t of its run t % length columns before its segment's last, and in a row that
// the next block finishes, (t - share) % length: a segment's blocks get the features of their columns from L2 together,
// and the segments those of their rows. Symmetric: one segment, in which a row of tiles begins where it meets the
// diagonal.
//
// The blocks that share a row of tiles of a segment, or a column, follow one another, and what each of them leaves of a
// line can be found, and merged in order, by counting.
#pragma once

#include "cuda/hopper.h"
#include "fastfuse/cuda_pair.h"

namespace fastfuse::cuda {

using namespace hopper;

// 132 blocks have 33 rows and 4 columns of tiles in use at a time; the features of 132 rows would fill L2.
inline constexpr int kPairSegmentBits = 2;

struct PairTiles {
  int row_begin, row_end, col_end;  // tiles
  bool symmetric;
  int segment_bits, width;  // 2^bits segments, tiles of one
  int blocks, share;

  FF_HOST_DEVICE int segments() const { return 1 << segment_bits; }
  FF_HOST_DEVICE int first_col(int row) const { return symmetric ? row * kPairBlockM / kPairBlockN : 0; }
  FF_HOST_DEVICE int length(int row) const { return width - first_col(row); }
  FF_HOST_DEVICE int row_end_of(int col) const {
    return symmetric ? least(row_end, (col + 1) * (kPairBlockN / kPairBlockM)) : row_end;
  }

  // Positions within a segment: of a row's first tile, of all tiles' end.
  FF_HOST_DEVICE int before(int row) const { return above(row) - above(row_begin); }
  FF_HOST_DEVICE int count() const { return before(row_end); }
  FF_HOST_DEVICE int turn(int row) const { return (before(row + 1) - 1) % share + 1; }
  FF_HOST_DEVICE int position(int row, int from_last) const {
    const int turned = from_last - turn(row) % length(row);
    return before(row) + (turned < 0 ? turned + length(row) : turned);
  }
  FF_HOST_DEVICE int owner(int row, int col) const {
    return (position(row, width - 1 - (col >> segment_bits)) / share << segment_bits) + (col & segments() - 1);
  }

  // Of a block: its segment's last column, its run's positions [start, end), the tiles it has of a row.
  FF_HOST_DEVICE int last_col(int block) const { return col_end - segments() + (block & segments() - 1); }
  FF_HOST_DEVICE int start(int block) const { return (block >> segment_bits) * share; }
  FF_HOST_DEVICE int end(int block) const { return least(start(block) + share, count()); }
  FF_HOST_DEVICE int first_row(int block) const {
    int row = row_begin;
    while (before(row + 1) <= start(block)) row++;
    return row;
  }
  FF_HOST_DEVICE int tiles_of_row(int block, int row) const {
    return least(before(row + 1), end(block)) + least(-before(row), -start(block));
  }

  // Where a block leaves what it has of a row: another part for each that meet.
  FF_HOST_DEVICE int row_part(int block, int row) const { return row * segments() + block; }
  FF_HOST_DEVICE int row_parts() const { return row_end * segments() + blocks; }

 private:
  static FF_HOST_DEVICE int least(int a, int b) { return a < b ? a : b; }
  // Tiles of the rows of tiles [0, row).
  FF_HOST_DEVICE int above(int row) const {
    static_assert(kPairBlockN == 2 * kPairBlockM);
    return row * width - (symmetric ? (row - 1) * (row - 1) / 4 : 0);  // sum of row / 2
  }
};

// Fills in the rest, for so many blocks or fewer and 2^bits segments or fewer, which make no run longer.
inline void cut_tiles(PairTiles* tiles, int blocks, int bits) {
  if (tiles->symmetric) bits = 0;
  while (tiles->col_end % (1 << bits) != 0 || blocks % (1 << bits) != 0) bits--;
  tiles->segment_bits = bits;
  tiles->width = tiles->col_end >> bits;
  const int count = tiles->count(), runs = blocks >> bits;
  tiles->share = (count + runs - 1) / runs;
  tiles->blocks = (count + tiles->share - 1) / tiles->share << bits;
}

// rows: [first_row, first_row + rows) of pairs.
inline cudaError_t make_pair_tiles(PairTiles* tiles, int first_row, int rows, int cols, bool symmetric,
                                   int segment_bits) {
  tiles->row_begin = first_row / kPairBlockM;
  tiles->row_end = (first_row + rows + kPairBlockM - 1) / kPairBlockM;
  tiles->col_end = tiles->width = (cols + kPairBlockN - 1) / kPairBlockN;
  tiles->symmetric = symmetric;
  int blocks = 0;
  const cudaError_t error = persistent_blocks(tiles->count(), &blocks);
  if (error == cudaSuccess) cut_tiles(tiles, blocks, segment_bits);
  return error;
}

// A block's walk along its run.
struct TileWalk {
  int row, col, position;

  FF_DEVICE TileWalk(const PairTiles& tiles, int block) : row(tiles.first_row(block)), position(tiles.start(block)) {
    const int from_last = (tiles.turn(row) + position - tiles.before(row)) % tiles.length(row);
    col = tiles.last_col(block) - (from_last << tiles.segment_bits);
  }
  FF_DEVICE bool there(const PairTiles& tiles, int block) const { return position < tiles.end(block); }
  FF_DEVICE void next(const PairTiles& tiles, int block) {
    const int last = tiles.last_col(block);
    if (++position < tiles.before(row + 1)) {
      col = last - col < tiles.length(row) - 1 << tiles.segment_bits ? col - tiles.segments() : last;
    } else if (there(tiles, block)) {
      row++;
      col = last - (tiles.turn(row) % tiles.length(row) << tiles.segment_bits);
    }
  }
  // Whether the run meets the tile's columns for the first time.
  FF_DEVICE bool first_meeting(const PairTiles& tiles, int block) const {
    const int from_last = tiles.last_col(block) - col >> tiles.segment_bits;
    return row == tiles.row_begin || tiles.position(row - 1, from_last) < tiles.start(block);
  }
};

// body(block) for every block that has tiles of a row of tiles, in order. Those of a column: tiles.owner of it and of its
// rows in order, in which a block comes several times, but each time by itself.
template <class Body>
FF_DEVICE void for_owners_of_row(const PairTiles& tiles, int row, const Body& body) {
  const int first = tiles.before(row) / tiles.share, last = (tiles.before(row + 1) - 1) / tiles.share;
  for (int block = first << tiles.segment_bits; block < last + 1 << tiles.segment_bits; block++) body(block);
}

}  // namespace fastfuse::cuda
