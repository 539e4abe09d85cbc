// Statistics of the rows and of the columns of x = scale c, both from one sweep of tiles.
//
// Rows stay in registers along a row of tiles, each thread with its share of the columns. Columns are merged in pairs up
// to a warp's 16 rows, then through shared memory to a warpgroup's 64, then into the warpgroup's own part in global
// memory. pair_statistics.cuh merges the parts in order: no atomics.
#pragma once

#include "cuda/pair_line.cuh"

namespace fastfuse::cuda {

struct LseArguments : SweepArguments {
  PairLse p;
  float* row_parts;  // [blocks + rows of tiles][kPlanes][kPairBlockM]; block + row is another number for each that meet
  float* col_parts;  // [blocks][warpgroups][col_planes][col_pitch], or null where the columns have no results
  int64_t col_pitch;
};

// Two numbers of each of 8 columns, every thread's own for its rows, merged over the 8 threads of a warp that have the same
// columns; entry 0 of lane l is then that of column l / 4.
template <class Merge>
FF_DEVICE void reduce_rows(int lane, float (&first)[8], float (&second)[8], const Merge& merge) {
#pragma unroll
  for (int mask = 16; mask >= 4; mask /= 2) {
    const bool upper = lane & mask;
#pragma unroll
    for (int i = 0; i < mask / 4; i++) {
      const int other = i + mask / 4;
      const float got_first = shuffle_xor(upper ? first[i] : first[other], mask);
      const float got_second = shuffle_xor(upper ? second[i] : second[other], mask);
      if (upper) first[i] = first[other], second[i] = second[other];
      merge(got_first, got_second, first[i], second[i]);
    }
  }
}

template <class Element_>
struct Lse {
  using Element = Element_;
  using C = PairConfig<Element, 1, true>;
  using Arguments = LseArguments;

  const LseArguments& args;
  const PairShared<C>& shared;
  PairThread who;
  PairRows rows;
  float line[2][kPlanes];  // this thread's share of its rows

  FF_DEVICE Lse(const LseArguments& args, const PairShared<C>& shared, const PairThread& who)
      : args(args), shared(shared), who(who) {}

  static FF_DEVICE bool looks_at_all(const LseArguments&) { return false; }
  static FF_DEVICE void stage_column(const LseArguments& args, const PairShared<C>& shared, int stage, int column,
                                     int j) {
    store_shared(shared.value(stage, 0, column), j < args.p.b.n ? load_global(args.p.b.inverse + j) : 0.0f);
  }

  FF_DEVICE void begin_rows(int row) {
    rows.load(args.p, who, row);
#pragma unroll
    for (int h = 0; h < 2; h++) {
      line[h][kTop] = kHidden;
      line[h][kRest] = line[h][kPositives] = line[h][kCount] = line[h][kSum] = 0;
    }
  }

  // A plane of the warpgroup's part of the columns.
  FF_DEVICE float* col_part(int plane) const {
    return args.col_parts +
           ((int64_t(block_index()) * C::kConsumers + who.warpgroup) * col_planes(args.p.uniform) + plane) *
               args.col_pitch;
  }

  // What the warp's rows add to two planes of 32 columns from tile column 8 j on: values(i) of products i and i + 2 first,
  // then over the warp. Left in the exchange.
  template <class Values, class Merge>
  FF_DEVICE void reduce_columns(int j, int first_product, const Values& values, const Merge& merge) const {
    float first[8], second[8];
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const int product = first_product + i / 2 * 4 + i % 2;
      values(product, first[i], second[i]);
      float other_first, other_second;
      values(product + 2, other_first, other_second);
      merge(other_first, other_second, first[i], second[i]);
    }
    reduce_rows(who.lane, first, second, merge);
    const int column = who.col(j + who.lane / 8) + who.lane / 4 % 2;
    store_shared(shared.exchange(who.warpgroup, 0, who.warp, column), first[0]);
    store_shared(shared.exchange(who.warpgroup, 1, who.warp, column), second[0]);
  }

  // The exchange into two planes of the warpgroup's part. Each thread has two columns, which nobody else writes.
  template <class Merge>
  FF_DEVICE void merge_columns(const TileWalk& at, int first_plane, int second_plane, const Merge& merge) const {
    named_barrier_sync(C::kExchangeBarrier + who.warpgroup, 128);
    const int column = 2 * who.thread();
    auto* to_first = reinterpret_cast<Two<float>*>(col_part(first_plane) + at.col * C::kBlockN + column);
    auto* to_second = reinterpret_cast<Two<float>*>(col_part(second_plane) + at.col * C::kBlockN + column);
    Two<float> first = *to_first, second = *to_second;
#pragma unroll
    for (int warp = 0; warp < 4; warp++) {
      const Two<float> other_first = load_two<float>(shared.exchange(who.warpgroup, 0, warp, column));
      const Two<float> other_second = load_two<float>(shared.exchange(who.warpgroup, 1, warp, column));
#pragma unroll
      for (int c = 0; c < 2; c++) merge(other_first.at[c], other_second.at[c], first.at[c], second.at[c]);
    }
    *to_first = first;
    *to_second = second;
    named_barrier_sync(C::kExchangeBarrier + who.warpgroup, 128);
  }

  FF_DEVICE void begin_columns(const TileWalk& at) const {
    for (int plane = 0; plane < col_planes(args.p.uniform); plane++) {
      const float nothing = plane == kTop ? kHidden : 0.0f;
      store_global(reinterpret_cast<Two<float>*>(col_part(plane) + at.col * C::kBlockN + 2 * who.thread()),
                   Two<float>{nothing, nothing});
    }
  }

  // Sums of a tile's logits over all pairs, left out or not.
  FF_DEVICE void add_all(const TileWalk& at, const float (&x)[C::kProducts]) {
    const PairBounds bounds(args.p, rows, at.col * C::kBlockN + who.col(0));
#pragma unroll
    for (int i = 0; i < C::kProducts; i++) line[i / 2 % 2][kSum] += bounds.there(i) ? x[i] : 0.0f;
    if (!args.col_parts) return;
#pragma unroll
    for (int j = 0; j < C::kProducts / 4; j += 4) {
      reduce_columns(
          j, 4 * j,
          [&](int i, float& sum, float& nothing) {
            sum = bounds.there(i) && !bounds.own(i) ? x[i] : 0.0f;
            nothing = 0;
          },
          AddBoth{});
    }
    merge_columns(at, kSum, kCount, AddBoth{});
  }

  // Positives of a tile that has to be looked at; what is left out becomes kHidden.
  FF_DEVICE void look(const TileWalk& at, int stage, float (&x)[C::kProducts]) {
#pragma unroll 1
    for (int quarter = 0; quarter < kQuarters; quarter++) {
      const int first = quarter * kQuarter / 4;
      const PairBounds bounds(args.p, rows, at.col * C::kBlockN + who.col(first));
      const PairMarks marks(args.p, shared, who, rows, bounds, quarter, stage);
#pragma unroll
      for (int i = 0; i < kQuarter; i++) {
        if (!marks.visible(i)) x[i] = kHidden;
        line[i / 2 % 2][kPositives] += marks.positive(i) ? x[i] : 0.0f;
      }
#pragma unroll
      for (int h = 0; h < 2; h++) line[h][kCount] += float(marks.positives_of_row(h));
      if (args.col_parts) {
#pragma unroll
        for (int j = 0; j < kQuarter / 4; j += 4) {
          reduce_columns(
              first + j, 4 * j,
              [&](int i, float& sum, float& count) {
                const bool counts = marks.positive(i) && !bounds.own(i);
                sum = counts ? x[i] : 0.0f;
                count = counts ? 1.0f : 0.0f;
              },
              AddBoth{});
        }
      }
      turn(x);
    }
    if (args.col_parts) merge_columns(at, kPositives, kCount, AddBoth{});
  }

  // A row with itself is no pair of a column's.
  FF_DEVICE void hide_own(const TileWalk& at, float (&x)[C::kProducts]) const {
    const PairBounds bounds(args.p, rows, at.col * C::kBlockN + who.col(0));
#pragma unroll
    for (int i = 0; i < C::kProducts; i++) {
      if (bounds.own(i)) x[i] = kHidden;
    }
  }

  FF_DEVICE void tile(const TileWalk& at, int stage, bool marked, float (&x)[C::kProducts]) {
#pragma unroll
    for (int j = 0; j < C::kProducts / 4; j++) {
      const Two<float> inverse = load_two<float>(shared.value(stage, 0, who.col(j)));
#pragma unroll
      for (int i = 0; i < 4; i++)
        x[4 * j + i] = multiply_exactly(multiply_exactly(x[4 * j + i], inverse.at[i % 2]), rows.scaled[i / 2]);
    }
    if (args.col_parts && at.first_meeting(args.tiles, block_index())) begin_columns(at);
    if (args.p.uniform) add_all(at, x);
    if (marked) look(at, stage, x);
#pragma unroll
    for (int h = 0; h < 2; h++) take_in(x, h, line[h][kTop], line[h][kRest]);
    if (!args.col_parts) return;
    if (marked && args.p.symmetric) hide_own(at, x);
#pragma unroll
    for (int j = 0; j < C::kProducts / 4; j += 4) {
      reduce_columns(
          j, 4 * j,
          [&](int i, float& top, float& rest) {
            top = x[i];
            rest = 0;
          },
          MergeLines{});
    }
    merge_columns(at, kTop, kRest, MergeLines{});
  }

  FF_DEVICE void end_rows(int row) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float (&own)[kPlanes] = line[h];
#pragma unroll
      for (int mask = 1; mask <= 2; mask *= 2) {
        merge_lines(shuffle_xor(own[kTop], mask), shuffle_xor(own[kRest], mask), own[kTop], own[kRest]);
        for (int plane = kPositives; plane < kPlanes; plane++) own[plane] += shuffle_xor(own[plane], mask);
      }
      if (who.lane % 4 != 0) continue;
      float* part = args.row_parts + int64_t(block_index() + row) * kPlanes * C::kBlockM + who.row(h);
#pragma unroll
      for (int plane = 0; plane < kPlanes; plane++) store_global(part + plane * C::kBlockM, own[plane]);
    }
  }

  FF_DEVICE void finish() const {}
};

}  // namespace fastfuse::cuda
