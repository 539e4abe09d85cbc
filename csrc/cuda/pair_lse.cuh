// Statistics of the rows and of the columns of x = scale c, both from one sweep of tiles.
//
// Rows stay in registers along a row of tiles, each thread with its share of the columns. Columns are merged in pairs
// up to a warp's 16 rows, then through shared memory to a warpgroup's 64, then into the warpgroup's own part in global
// memory. pair_statistics.cuh merges the parts in order: no atomics.
#pragma once

#include "cuda/pair_line.cuh"

namespace fastfuse::cuda {

struct LseArguments : SweepArguments {
  PairLse p;
  float* row_parts;  // [tiles.row_parts()][kPlanes][kPairBlockM]
  float* col_parts;  // [blocks][warpgroups][col_planes][col_pitch], or null where the columns have no results
  int64_t col_pitch;
};

// Two numbers of each of 8 columns, every thread's own for its rows, merged over the 8 threads of a warp that have the
// same columns; entry 0 of lane l is then that of column l / 4.
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

// The same of one number, added; of several times 8 columns, whose shuffles are under way together.
template <int kGroups>
FF_DEVICE void add_rows(int lane, float (&sum)[kGroups][8]) {
#pragma unroll
  for (int mask = 16; mask >= 4; mask /= 2) {
    const bool upper = lane & mask;
#pragma unroll
    for (int group = 0; group < kGroups; group++) {
#pragma unroll
      for (int i = 0; i < mask / 4; i++) {
        float &own = sum[group][i], &other = sum[group][i + mask / 4];
        const float got = shuffle_xor(upper ? own : other, mask);
        own = (upper ? other : own) + got;
      }
    }
  }
}

// kCols: the columns have results too, or symmetric, the rows from the other side of the diagonal.
template <class Element_, bool kCols>
struct Lse {
  using Element = Element_;
  using C = PairConfig<Element, 1, true>;
  using Arguments = LseArguments;

  const LseArguments& args;
  const PairShared<C>& shared;
  PairThread who;
  PairRows rows;
  float* row_part;        // [kPlanes][kBlockM]
  float top[2], rest[2];  // of this thread's share of its rows

  FF_DEVICE Lse(const LseArguments& args, const PairShared<C>& shared, const PairThread& who)
      : args(args), shared(shared), who(who) {}

  static FF_DEVICE bool looks_at_all(const LseArguments&) { return false; }
  static FF_DEVICE void stage_column(const LseArguments& args, const PairShared<C>& shared, int stage, int column,
                                     int j) {
    store_shared(shared.value(stage, 0, column), j < args.p.b.n ? load_global(args.p.b.inverse + j) : 0.0f);
  }

  FF_DEVICE void begin_rows(int row) {
    rows.load(args.p, who, row);
    row_part = args.row_parts + int64_t(args.tiles.row_part(block_index(), row)) * kPlanes * C::kBlockM;
#pragma unroll
    for (int h = 0; h < 2; h++) {
      top[h] = kHidden;
      rest[h] = 0;
      if (who.lane % 4 != 0) continue;
#pragma unroll
      for (int plane = kPositives; plane < kPlanes; plane++) store_global(row_plane(plane, h), 0.0f);
    }
  }

  FF_DEVICE float* row_plane(int plane, int h) const { return row_part + plane * C::kBlockM + who.row(h); }

  // To a plane of the row, what its four threads have.
  FF_DEVICE void add_to_row(int plane, int h, float sum) const {
    sum += shuffle_xor(sum, 1);
    sum += shuffle_xor(sum, 2);
    if (who.lane % 4 == 0) *row_plane(plane, h) += sum;
  }

  // A plane of the warpgroup's part of the columns.
  FF_DEVICE float* col_part(int plane) const {
    return args.col_parts +
           ((int64_t(block_index()) * C::kConsumers + who.warpgroup) * col_planes(args.p.uniform) + plane) *
               args.col_pitch;
  }

  // What the warp's rows add to two planes of 32 columns from tile column 8 j on: values(i) of products i and i + 2
  // first, then over the warp. Left in the exchange.
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
    leave(j, first[0], second[0]);
  }

  // A tile in which every pair counts alike: one exponential for a pair's row and its column, relative to the warp's
  // largest logit m, in log2 units. A line's part of the tile, s = sum exp2(x - m), becomes one logit, m + log2 s. Tells
  // whether that went well: not where a line lies so far below m that s loses digits.
  FF_DEVICE bool add_exponentials(const float (&x)[C::kProducts]) {
    constexpr float kLeast = 1e-26f;  // of s: what is e^28 times smaller than that is still told
    float largest = x[0];
#pragma unroll
    for (int i = 1; i < C::kProducts; i++) largest = maximum(largest, x[i]);
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) largest = maximum(largest, shuffle_xor(largest, mask));
    const float base = largest * kLog2e;
    const auto logit_of = [&](float sum) { return (log2_approx(sum) + base) * kLn2; };
    float row_sum[2] = {0, 0}, col_sum[C::kProducts / 16][8];
    bool lost = false;
#pragma unroll
    for (int group = 0; group < C::kProducts / 16; group++) {
#pragma unroll
      for (int i = 0; i < 8; i++) {
        const int product = 16 * group + i / 2 * 4 + i % 2;
        const float upper = exp2_approx(fused_multiply_add(x[product], kLog2e, -base));
        const float lower = exp2_approx(fused_multiply_add(x[product + 2], kLog2e, -base));
        row_sum[0] += upper;
        row_sum[1] += lower;
        col_sum[group][i] = upper + lower;
      }
    }
    if constexpr (kCols) {
      add_rows(who.lane, col_sum);
#pragma unroll
      for (int group = 0; group < C::kProducts / 16; group++) {
        lost |= !(col_sum[group][0] >= kLeast);
        leave(4 * group, logit_of(col_sum[group][0]), 0);
      }
    }
#pragma unroll
    for (int h = 0; h < 2; h++) lost |= !(row_sum[h] >= kLeast);
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) lost |= shuffle_xor(int(lost), mask) != 0;
    if (lost) return false;
#pragma unroll
    for (int h = 0; h < 2; h++) merge_lines(logit_of(row_sum[h]), 0, top[h], rest[h]);
    return true;
  }

  // In the exchange, what the warp has of the column that is this thread's after reduce_rows of those from 8 j on.
  FF_DEVICE void leave(int j, float first, float second) const {
    const int column = who.col(j + who.lane / 8) + who.lane / 4 % 2;
    store_shared(shared.exchange(who.warpgroup, 0, who.warp, column), first);
    store_shared(shared.exchange(who.warpgroup, 1, who.warp, column), second);
  }

  // The exchange into two planes of the warpgroup's part. Each thread has two columns, which nobody else writes.
  template <class Merge>
  FF_DEVICE void merge_columns(int stage, int first_plane, int second_plane, const Merge& merge) const {
    const int column = 2 * who.thread();
    auto* to_first = reinterpret_cast<Two<float>*>(col_part(first_plane) + shared.first_column(stage) + column);
    auto* to_second = reinterpret_cast<Two<float>*>(col_part(second_plane) + shared.first_column(stage) + column);
    Two<float> first = *to_first, second = *to_second;
    named_barrier_sync(C::kExchangeBarrier + who.warpgroup, 128);
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

  FF_DEVICE void begin_columns(int stage) const {
    for (int plane = 0; plane < col_planes(args.p.uniform); plane++) {
      const float nothing = plane == kTop ? kHidden : 0.0f;
      store_global(reinterpret_cast<Two<float>*>(col_part(plane) + shared.first_column(stage) + 2 * who.thread()),
                   Two<float>{nothing, nothing});
    }
  }

  // Sums of a tile's logits over all pairs, left out or not.
  FF_DEVICE void add_all(int stage, float (&x)[C::kProducts]) {
#pragma unroll 1
    for (int quarter = 0; quarter < kQuarters; quarter++) {
      const int first = quarter * kQuarter / 4;
      const PairBounds bounds(args.p, rows, shared.first_column(stage) + who.col(first));
      float sum[2] = {0, 0};
#pragma unroll
      for (int i = 0; i < kQuarter; i++) sum[i / 2 % 2] += bounds.there(i) ? x[i] : 0.0f;
#pragma unroll
      for (int h = 0; h < 2; h++) add_to_row(kSum, h, sum[h]);
#pragma unroll
      for (int j = 0; kCols && j < kQuarter / 4; j += 4) {
        const auto value = [&](int i) { return bounds.there(i) && !bounds.own(i) ? x[i] : 0.0f; };
        float col_sum[1][8];
#pragma unroll
        for (int i = 0; i < 8; i++) {
          const int product = 4 * j + i / 2 * 4 + i % 2;
          col_sum[0][i] = value(product) + value(product + 2);
        }
        add_rows(who.lane, col_sum);
        leave(first + j, col_sum[0][0], 0);
      }
      turn(x);
    }
    if (kCols) merge_columns(stage, kSum, kCount, AddBoth{});
  }

  // Positives of a tile that has to be looked at; what is left out becomes kHidden.
  FF_DEVICE void look(int stage, float (&x)[C::kProducts]) {
#pragma unroll 1
    for (int quarter = 0; quarter < kQuarters; quarter++) {
      const int first = quarter * kQuarter / 4;
      const PairBounds bounds(args.p, rows, shared.first_column(stage) + who.col(first));
      const PairMarks marks(args.p, shared, who, rows, bounds, quarter, stage);
      float sum[2] = {0, 0};
#pragma unroll
      for (int i = 0; i < kQuarter; i++) {
        if (!marks.visible(i)) x[i] = kHidden;
        sum[i / 2 % 2] += marks.positive(i) ? x[i] : 0.0f;
      }
#pragma unroll
      for (int h = 0; h < 2; h++) {
        add_to_row(kPositives, h, sum[h]);
        add_to_row(kCount, h, float(marks.positives_of_row(h)));
      }
      if (kCols) {
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
    if (kCols) merge_columns(stage, kPositives, kCount, AddBoth{});
  }

  // A row with itself is no pair of a column's.
  FF_DEVICE void hide_own(int stage, float (&x)[C::kProducts]) const {
    const PairBounds bounds(args.p, rows, shared.first_column(stage) + who.col(0));
#pragma unroll
    for (int i = 0; i < C::kProducts; i++) {
      if (bounds.own(i)) x[i] = kHidden;
    }
  }

  FF_DEVICE void tile(int stage, bool marked, float (&x)[C::kProducts]) {
#pragma unroll
    for (int j = 0; j < C::kProducts / 4; j++) {
      const Two<float> inverse = load_two<float>(shared.value(stage, 0, who.col(j)));
#pragma unroll
      for (int i = 0; i < 4; i++)
        x[4 * j + i] = multiply_exactly(multiply_exactly(x[4 * j + i], inverse.at[i % 2]), rows.scaled[i / 2]);
    }
    if (kCols && shared.first_meeting(stage)) begin_columns(stage);
    if (args.p.uniform) add_all(stage, x);
    if (marked) look(stage, x);
    if (marked || !add_exponentials(x)) {
#pragma unroll
      for (int h = 0; h < 2; h++) take_in(x, h, top[h], rest[h]);
      if (kCols) take_in_columns(stage, marked, x);
    }
    if (kCols) merge_columns(stage, kTop, kRest, MergeLines{});
  }

  FF_DEVICE void take_in_columns(int stage, bool marked, float (&x)[C::kProducts]) const {
    if (marked && args.p.symmetric) hide_own(stage, x);
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
  }

  FF_DEVICE void end_rows(int) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
#pragma unroll
      for (int mask = 1; mask <= 2; mask *= 2)
        merge_lines(shuffle_xor(top[h], mask), shuffle_xor(rest[h], mask), top[h], rest[h]);
      if (who.lane % 4 != 0) continue;
      store_global(row_plane(kTop, h), top[h]);
      store_global(row_plane(kRest, h), rest[h]);
    }
  }

  FF_DEVICE void finish() const {}
};

}  // namespace fastfuse::cuda
