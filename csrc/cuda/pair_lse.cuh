// Statistics of the rows and of the columns of x = scale c, both from one sweep of tiles.
//
// A line (row or column) keeps (top, rest): its largest visible logit so far, and the sum of exp(x - top) over the
// others, so that a line with one dominant logit keeps its tiny rest in full. Taking in a tile's part of a row,
//
//     new = max(top, max x);   rest' = rest exp(top - new) + sum_{x < new} exp(x - new) + #{x = new} + (exp(top - new) - 1
//                                                                                                     if top < new)
// and two lines that meet become
//
//     e = exp(-|top_1 - top_2|);   the larger's rest + ((the smaller's rest) + 1) e
//
// Rows stay in registers along a row of tiles, each thread with its share of the columns. Columns are merged in pairs up
// to a warp's 16 rows, then through shared memory to a warpgroup's 64, then into the warpgroup's own part in global
// memory. pair_statistics_kernel merges the parts in order: no atomics.
#pragma once

#include "cuda/pair_logits.cuh"

namespace fastfuse::cuda {

inline constexpr float kHidden = -1e38f;  // a logit that is left out, and the top of nothing

// What is kept of a line: planes of a part.
enum LinePlane { kTop, kRest, kPositives, kCount, kSum, kPlanes };  // kPositives, kSum: of x over the positives, over all

struct LseArguments : SweepArguments {
  PairLse p;
  float* row_parts;  // [blocks + rows of tiles][kPlanes][kPairBlockM]; block + row is another number for each that meet
  float* col_parts;  // [blocks][warpgroups][kPlanes][col_pitch], or null where the columns have no results
  int64_t col_pitch;
};

FF_DEVICE void merge_lines(float other_top, float other_rest, float& top, float& rest) {
  const float difference = other_top - top, e = exp_of(difference > 0 ? -difference : difference);
  rest = difference > 0 ? other_rest + (rest + 1) * e : rest + (other_rest + 1) * e;
  top = maximum(top, other_top);
}

// What two planes of a line become when they take in two others.
struct MergeLines {
  FF_DEVICE void operator()(float other_top, float other_rest, float& top, float& rest) const {
    merge_lines(other_top, other_rest, top, rest);
  }
};
struct AddBoth {
  FF_DEVICE void operator()(float first, float second, float& to_first, float& to_second) const {
    to_first += first;
    to_second += second;
  }
};

// Row h's part of a tile.
template <int kCount>
FF_DEVICE void take_in(const float (&x)[kCount], int h, float& top, float& rest) {
  float now = top;
#pragma unroll
  for (int i = 0; i < kCount / 2; i++) now = maximum(now, x[i / 2 * 4 + 2 * h + i % 2]);
  float others = 0, equal = 0;
#pragma unroll
  for (int i = 0; i < kCount / 2; i++) {
    const float below = x[i / 2 * 4 + 2 * h + i % 2] - now;
    if (below < 0) {
      others += exp_of(below);
    } else {
      equal += 1;
    }
  }
  const float old = exp_of(top - now);
  rest = rest * old + others + (top < now ? old + (equal - 1) : equal);
  top = now;
}

// Values first[i], second[i] of kCount columns, each thread's own for its rows, merged over the 8 threads of a warp that
// have the same columns: entries 0 and 1 of lane l are then those of columns reduced_at(l) + 0 and 1.
template <int kCount, class Merge>
FF_DEVICE void reduce_rows(int lane, float (&first)[kCount], float (&second)[kCount], const Merge& merge) {
  static_assert(kCount == 16);
#pragma unroll
  for (int mask = 16; mask >= 4; mask /= 2) {
    const int half = mask / 2;
    const bool upper = lane & mask;
#pragma unroll
    for (int i = 0; i < half; i++) {
      const float got_first = shuffle_xor(upper ? first[i] : first[i + half], mask);
      const float got_second = shuffle_xor(upper ? second[i] : second[i + half], mask);
      if (upper) first[i] = first[i + half], second[i] = second[i + half];
      merge(got_first, got_second, first[i], second[i]);
    }
  }
}
FF_DEVICE int reduced_at(int lane) { return (lane & 16) / 2 + (lane & 8) / 2 + (lane & 4) / 2; }

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

  static FF_DEVICE bool looks_at_all(const LseArguments& args) { return args.p.uniform; }
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
    return args.col_parts + ((int64_t(block_index()) * C::kConsumers + who.warpgroup) * kPlanes + plane) * args.col_pitch;
  }

  // values(i) gives what product i adds to two planes of its column; merge(first, second, to_first, to_second).
  template <class Values, class Merge>
  FF_DEVICE void columns_take_in(const TileWalk& at, int first_plane, int second_plane, const Values& values,
                                 const Merge& merge) {
    constexpr int kGroups = 8;  // of 8 columns at a time
#pragma unroll
    for (int group = 0; group < C::kProducts / 4; group += kGroups) {
      float first[2 * kGroups], second[2 * kGroups];
#pragma unroll
      for (int i = 0; i < 2 * kGroups; i++) {
        const int product = 4 * (group + i / 2) + i % 2;
        values(product, first[i], second[i]);
        float other_first, other_second;
        values(product + 2, other_first, other_second);
        merge(other_first, other_second, first[i], second[i]);
      }
      reduce_rows(who.lane, first, second, merge);
      const int column = who.col(group + reduced_at(who.lane) / 2);
      store_shared(shared.exchange(who.warpgroup, 0, who.warp, column), Two<float>{first[0], first[1]});
      store_shared(shared.exchange(who.warpgroup, 1, who.warp, column), Two<float>{second[0], second[1]});
    }
    named_barrier_sync(1 + who.warpgroup, 128);
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
    named_barrier_sync(1 + who.warpgroup, 128);
  }

  // The thread's two columns, which nobody else writes.
  FF_DEVICE void begin_columns(const TileWalk& at) const {
#pragma unroll
    for (int plane = 0; plane < kPlanes; plane++) {
      const float nothing = plane == kTop ? kHidden : 0.0f;
      store_global(reinterpret_cast<Two<float>*>(col_part(plane) + at.col * C::kBlockN + 2 * who.thread()),
                   Two<float>{nothing, nothing});
    }
  }

  // Positives and sums of a tile that has to be looked at; then what is left out becomes kHidden.
  FF_DEVICE void look(const TileWalk& at, const PairMarks<C>& marks, float (&x)[C::kProducts]) {
#pragma unroll
    for (int i = 0; i < C::kProducts; i++) {
      float(&to)[kPlanes] = line[i / 2 % 2];
      if (marks.positive[i]) to[kPositives] += x[i], to[kCount] += 1;
      if (args.p.uniform && marks.there[i]) to[kSum] += x[i];
    }
    if (args.col_parts) {
      columns_take_in(at, kPositives, kCount, [&](int i, float& sum, float& count) {
        const bool counts = marks.positive[i] && !marks.own[i];
        sum = counts ? x[i] : 0.0f;
        count = counts ? 1.0f : 0.0f;
      }, AddBoth{});
    }
    if (args.col_parts && args.p.uniform) {
      columns_take_in(at, kSum, kCount, [&](int i, float& sum, float& nothing) {
        sum = marks.there[i] && !marks.own[i] ? x[i] : 0.0f;
        nothing = 0;
      }, AddBoth{});
    }
#pragma unroll
    for (int i = 0; i < C::kProducts; i++) x[i] = marks.visible[i] ? x[i] : kHidden;
  }

  FF_DEVICE void tile(const TileWalk& at, int stage, bool marked, float (&x)[C::kProducts]) {
    apply_column_inverses(shared, who, stage, x);
#pragma unroll
    for (int i = 0; i < C::kProducts; i++) x[i] = multiply_exactly(x[i], rows.scaled[i / 2 % 2]);
    if (args.col_parts && at.first_meeting()) begin_columns(at);
    if (marked) {
      const PairMarks<C> marks(args.p, shared, who, rows, at.col, stage);
      look(at, marks, x);
    }
#pragma unroll
    for (int h = 0; h < 2; h++) take_in(x, h, line[h][kTop], line[h][kRest]);
    if (!args.col_parts) return;
    if (marked && args.p.symmetric) {
#pragma unroll
      for (int i = 0; i < C::kProducts; i++) {
        const int col = at.col * C::kBlockN + who.col(i / 4) + i % 2;
        if (col == rows.row[i / 2 % 2]) x[i] = kHidden;
      }
    }
    columns_take_in(at, kTop, kRest, [&](int i, float& top, float& rest) {
      top = x[i];
      rest = 0;
    }, MergeLines{});
  }

  FF_DEVICE void end_rows(int row) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float(&own)[kPlanes] = line[h];
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

// ---- the parts of each line, merged

struct LineStatisticsArguments {
  PairTiles tiles;
  const float* row_parts;  // null: none for these lines
  const float* col_parts;
  int64_t col_pitch;
  int lines, others;
  bool uniform;
  PairStatistics to;
};

inline constexpr int kMergeWarps = 8, kMergeLines = 32;

// What a warp has of a line so far. What is no line's own logit is summed in double.
struct LineTotal {
  float top = kHidden, rest = 0;
  double positives = 0, sum = 0;
  int count = 0;

  FF_DEVICE void take(const float* part, int64_t pitch) {
    merge_lines(load_global(part + kTop * pitch), load_global(part + kRest * pitch), top, rest);
    positives += load_global(part + kPositives * pitch);
    count += int(load_global(part + kCount * pitch));
    sum += load_global(part + kSum * pitch);
  }
  FF_DEVICE void take(const LineTotal& other) {
    merge_lines(other.top, other.rest, top, rest);
    positives += other.positives;
    count += other.count;
    sum += other.sum;
  }
};

// 32 lines a block; its warps share their parts.
inline FF_KERNEL(32 * kMergeWarps) pair_statistics_kernel(const FF_GRID_CONSTANT LineStatisticsArguments args) {
  const int warp = thread_index() / 32, lane = thread_index() % 32;
  const int line = block_index() * kMergeLines + lane;
  LineTotal total;
  int part = 0;
  const auto mine = [&] { return line < args.lines && part++ % kMergeWarps == warp; };
  if (args.row_parts) {
    const int row = block_index() * kMergeLines / kPairBlockM;
    for_owners_of_row(args.tiles, row, [&](int block) {
      if (mine()) total.take(args.row_parts + int64_t(block + row) * kPlanes * kPairBlockM + line % kPairBlockM, kPairBlockM);
    });
  }
  if (args.col_parts) {
    for_owners_of_col(args.tiles, block_index() * kMergeLines / kPairBlockN, [&](int block) {
      for (int warpgroup = 0; warpgroup < 2; warpgroup++) {
        if (mine()) total.take(args.col_parts + (int64_t(block) * 2 + warpgroup) * kPlanes * args.col_pitch + line, args.col_pitch);
      }
    });
  }
  const auto exchange = [&](int from) { return shared_memory() + uint32_t(from * kMergeLines + lane) * sizeof(LineTotal); };
  store_shared(exchange(warp), total);
  block_sync();
  if (warp != 0 || line >= args.lines) return;
  for (int other = 1; other < kMergeWarps; other++) total.take(load_shared<LineTotal>(exchange(other)));
  const bool nothing = total.top == kHidden;
  const float reference = nothing ? 0.0f : total.top;
  const auto below = [&](double sum, double n) { return float(reference - sum / n); };
  store_global(args.to.values + line, reference);
  store_global(args.to.values + args.lines + line, nothing ? 0.0f : total.rest);
  store_global(args.to.values + 2 * args.lines + line, total.count ? below(total.positives, total.count) : 0.0f);
  store_global(args.to.values + 3 * args.lines + line, args.uniform ? below(total.sum, args.others) : 0.0f);
  store_global(args.to.count + line, total.count);
}

inline cudaError_t merge_statistics(const LineStatisticsArguments& args, cudaStream_t stream) {
  return launch(pair_statistics_kernel, (args.lines + kMergeLines - 1) / kMergeLines, 32 * kMergeWarps,
                kMergeWarps * kMergeLines * sizeof(LineTotal), stream, args);
}

}  // namespace fastfuse::cuda
