// Softmax over rows and columns at once: statistics, and gradients from them. x_ij = scale * c_ij.
//
// A line (row or column) keeps (top, rest): top is its largest visible logit so far and rest the sum of exp(x - top)
// over the others, so that a line with one dominant logit keeps its tiny rest in full. One exponential takes in an
// element:
//
//   e = exp(-|x - top|);   rest = x > top ? (rest + 1) e : rest + e;   top = max(top, x)
//
// Where logits are bounded (kSharedBound) only positives go that way. The others add exp(x), the same number for the
// row and for the column, to `small`, and the line is (top, rest + small exp(-top)): as exact, for half the
// exponentials.
#pragma once

#include "cpu/pair_labels.h"
#include "cpu/pair_sweep.h"

namespace fastfuse::cpu::FASTFUSE_ISA {

constexpr float kHidden = -1e38f;  // a logit that is left out, and the top of nothing

FF_INLINE void take_in(vf x, vf& top, vf& rest) {
  const vf e = exp_exact(-absolute(x - top));
  rest = select((vi)(x > top), fma(rest, e, e), rest + e);
  top = max(top, x);
}

FF_INLINE void merge(vf top, vf rest, vf& to_top, vf& to_rest) {
  const vf e = exp_exact(-absolute(top - to_top));
  to_rest = select((vi)(top > to_top), fma(to_rest, e, e) + rest, fma(rest, e, e) + to_rest);
  to_top = max(to_top, top);
}

// One line from its lanes; the first of the largest tops is the line's.
FF_INLINE void merge_lanes(vf tops, vf rests, float& top, float& rest) {
  top = reduce_max(tops);
  const uint32_t largest = lane_bits((vi)(tops == splat(top)));
  const vi first = lane_index() == splat(int32_t(largest ? __builtin_ctz(largest) : 0));
  rest = reduce_add((rests + select(first, vf{}, splat(1.0f))) * exp_exact(tops - splat(top)));
}

// Statistics of lines while a sweep runs.
struct Lines {
  Buffer<float> top, rest;
  Buffer<double> small;              // sum of exp(x) over the columns that are not in (top, rest)
  Buffer<double> positive_sum, sum;  // of x over the positives, over all
  Buffer<int32_t> count;             // positives
  static constexpr int64_t kBytes = 3 * sizeof(double) + 3 * sizeof(float);

  explicit Lines(int64_t n)
      : top(n), rest(n, true), small(n, true), positive_sum(n, true), sum(n, true), count(n, true) {
    for (int64_t i = 0; i < n; i++) top.get()[i] = kHidden;
  }
};

template <bool kCols, bool kSkip, bool kShared>
struct SoftmaxVisit {
  const PairSoftmaxFwd& p;
  const PaddedLabels& labels;
  const float *row_inverse, *col_inverse;
  const Kept& kept;
  Lines rows, cols;
  int64_t chunk_rows;
  Lines parts;              // [strips][chunk_rows]: the chunk's rows, one strip each
  Buffer<bool> only_small;  // [strips][chunk_rows / kBlock]: parts of plain tiles

  SoftmaxVisit(const PairSoftmaxFwd& p, const PaddedLabels& labels, const float* row_inverse, const float* col_inverse,
               const Kept& kept, int64_t strips, int64_t chunk_rows)
      : p(p),
        labels(labels),
        row_inverse(row_inverse),
        col_inverse(col_inverse),
        kept(kept),
        rows(round_up(p.a.rows, kPanel)),
        cols(kCols ? strips * kStrip : 0),
        chunk_rows(chunk_rows),
        parts(strips * chunk_rows),
        only_small(strips * chunk_rows / kBlock, true) {}

  void operator()(const TileAt& at, const float* tile, float*) {
    if (kCols && (!p.symmetric || at.mirrored)) {
      visit<true>(at, tile);
    } else {
      visit<false>(at, tile);
    }
  }

#if defined(__AVX512BF16__)
  bool plain(const TileAt& at) const { return kShared && !p.uniform && labels.unmarked(at.row, at.strip); }

  void visit_plain(const TileAt& at, const float* tile, const GradientTile&) {
    if (kCols && (!p.symmetric || at.mirrored)) {
      visit_plain<true>(at, tile);
    } else {
      visit_plain<false>(at, tile);
    }
    only_small.get()[(at.slot * chunk_rows + at.row - at.chunk) / kBlock] = true;
  }

  template <bool kWithCols>
  void visit_plain(const TileAt& at, const float* tile) {
    alignas(64) float col_small[kStrip] = {};
    int16_t* cosines = kept.cosines(at.row, at.strip);
    double* sums = parts.small.get() + at.slot * chunk_rows + at.row - at.chunk;
    const float *inverses = row_inverse + at.row, *col_inverses = col_inverse + at.col;
    const float factor = p.scale * kLog2e;
    for (int64_t r = 0; r < kBlock; r += 2) {
      vf small[2] = {};
      for (int64_t v = 0; v < kStrip; v += 2 * kLanes) {
        const vf col[2] = {load(col_inverses + v), load(col_inverses + v + kLanes)};
        const Quad y = in_step<4>([&](int i) { return load(tile + r * kStrip + quad_at(i, v)) * col[i % 2]; });
        const Quad e = exp2_plain(in_step<4>([&](int i) { return y.at[i] * splat(inverses[r + i / 2] * factor); }));
        for (int h = 0; h < 2; h++) {
          if (cosines) {
            store_fixed(cosines + (r + h) * kStrip + v, y.at[2 * h], y.at[2 * h + 1],
                        splat(inverses[r + h] * kFixedUnit));
          }
          small[h] += e.at[2 * h] + e.at[2 * h + 1];
        }
        if (kWithCols) {
          store(col_small + v, load(col_small + v) + (e.at[0] + e.at[2]));
          store(col_small + v + kLanes, load(col_small + v + kLanes) + (e.at[1] + e.at[3]));
        }
      }
      sums[r] = reduce_add(small[0]);
      sums[r + 1] = reduce_add(small[1]);
    }
    if (cosines) kept.exact(at.row, at.strip) = false;  // kSharedBound is below kKeptBound
    if (kWithCols) {
      for (int64_t v = 0; v < kStrip; v++) cols.small.get()[at.col + v] += col_small[v];
    }
  }
#endif

  template <bool kWithCols>
  void visit(const TileAt& at, const float* tile) {
    only_small.get()[(at.slot * chunk_rows + at.row - at.chunk) / kBlock] = false;
    alignas(64) float col_small[kStrip] = {};
    int16_t* cosines = kept.cosines(at.row, at.strip);
    uint32_t exact = at.cols % kLanes || !(__builtin_fabsf(p.scale) <= kKeptBound) || !p.normalize;  // see pair_kept.h
    for (int64_t r = 0; r < at.rows; r++) {
      const int64_t i = at.row + r, part = at.slot * chunk_rows + i - at.chunk;
      const vf inverse = splat(row_inverse[i]), scale = splat(p.scale);
      const int32_t key = labels.row_key[i], skip = kSkip ? labels.row_skip[i] : 0;
      vf top = splat(kHidden), rest{}, small{};
      double positive_sum = 0, sum = 0;
      int32_t count = 0;
      for (int64_t v = 0; v < at.cols; v += kLanes) {
        const int64_t j = at.col + v;
        const vf c = load(tile + r * kStrip + v) * (load(col_inverse + j) * inverse);
        if (cosines) store_fixed(cosines + r * kStrip + v, c);
        vf x = rounded(c * scale);
        Marks marks = marks_of<kSkip>(labels, key, skip, j);
        const uint32_t marked = lane_bits(marks.positive | marks.hidden);
        exact |= marked;
        if (kShared && !marked && at.cols - v >= kLanes && !p.uniform) {
          const vf e = exp_exact(x);
          small += e;
          if (kWithCols) store(col_small + v, load(col_small + v) + e);
          continue;
        }
        const vi there = lane_index() < splat(int32_t(at.cols - v));
        marks.positive &= there;
        if (p.uniform) {
          sum += reduce_add_double(select(there, x, vf{}));
          if (kWithCols) {
            for (int l = 0; l < kLanes; l++) cols.sum.get()[j + l] += x[l];
          }
        }
        for (uint32_t bits = lane_bits(marks.positive); bits; bits &= bits - 1) {
          const int l = __builtin_ctz(bits);
          positive_sum += x[l];
          count++;
          if (kWithCols) {
            cols.positive_sum.get()[j + l] += x[l];
            cols.count.get()[j + l]++;
          }
        }
        if (kShared) {
          const vf e = select(there & ~marks.hidden & ~marks.positive, exp_exact(x), vf{});
          small += e;
          if (kWithCols) store(col_small + v, load(col_small + v) + e);
          if (!lane_bits(marks.positive)) continue;
        }
        x = select(kShared ? marks.positive : there & ~marks.hidden, x, splat(kHidden));
        take_in(x, top, rest);
        if constexpr (kWithCols) {
          vf col_top = load(cols.top.get() + j), col_rest = load(cols.rest.get() + j);
          take_in(x, col_top, col_rest);
          store(cols.top.get() + j, col_top);
          store(cols.rest.get() + j, col_rest);
        }
      }
      if (kShared && !count) {
        parts.top.get()[part] = kHidden;
        parts.rest.get()[part] = 0.0f;
      } else {
        merge_lanes(top, rest, parts.top.get()[part], parts.rest.get()[part]);
      }
      parts.small.get()[part] = reduce_add(small);
      parts.positive_sum.get()[part] = positive_sum;
      parts.sum.get()[part] = sum;
      parts.count.get()[part] = count;
    }
    if (cosines) kept.exact(at.row, at.strip) = exact != 0;
    if (kShared && kWithCols) {
      for (int64_t v = 0; v < at.cols; v++) cols.small.get()[at.col + v] += col_small[v];
    }
  }

  void end_chunk(const ThreadPool& pool, const Chunk& chunk) {
    for_each(pool, ceil_div(chunk.rows, kBlock), [&](int64_t block) {
      for (int64_t r = block * kBlock; r < min_of(chunk.rows, (block + 1) * kBlock); r += kLanes) {
        const int64_t i = chunk.first + r;
        vf top = splat(kHidden), rest{};
        for (int64_t slot = chunk.first_slot(i); slot < chunk.slots; slot++) {
          const int64_t part = slot * chunk_rows + r;
          if (only_small.get()[part / kBlock]) {
            for (int64_t l = 0; l < kLanes; l++) rows.small.get()[i + l] += parts.small.get()[part + l];
            continue;
          }
          merge(load(parts.top.get() + part), load(parts.rest.get() + part), top, rest);
          for (int64_t l = 0; l < kLanes; l++) {
            rows.positive_sum.get()[i + l] += parts.positive_sum.get()[part + l];
            rows.small.get()[i + l] += parts.small.get()[part + l];
            rows.sum.get()[i + l] += parts.sum.get()[part + l];
            rows.count.get()[i + l] += parts.count.get()[part + l];
          }
        }
        store(rows.top.get() + i, top);
        store(rows.rest.get() + i, rest);
      }
    });
  }

  // The lower triangle's share, which the mirrored tiles have left in cols.
  void join_mirrored(int64_t n) {
    for (int64_t i = 0; i < n; i += kLanes) {
      vf top = load(rows.top.get() + i), rest = load(rows.rest.get() + i);
      merge(load(cols.top.get() + i), load(cols.rest.get() + i), top, rest);
      store(rows.top.get() + i, top);
      store(rows.rest.get() + i, rest);
    }
    for (int64_t i = 0; i < n; i++) {
      rows.positive_sum.get()[i] += cols.positive_sum.get()[i];
      rows.small.get()[i] += cols.small.get()[i];
      rows.sum.get()[i] += cols.sum.get()[i];
      rows.count.get()[i] += cols.count.get()[i];
    }
  }
};

inline void write_statistics(const Lines& lines, int64_t n, int64_t others, bool uniform, const PairStatistics& out) {
  for (int64_t i = 0; i < n; i++) {
    const double small = lines.small.get()[i];
    float reference = lines.top.get()[i];
    double rest = lines.rest.get()[i];
    if (reference == kHidden) {  // none, or all in `small`
      reference = small > 0 ? float(__builtin_log(small)) : 0.0f;
      rest = small > 0 ? small * __builtin_exp(-double(reference)) - 1 : 0.0;
    } else if (small > 0) {
      rest += small * __builtin_exp(-double(reference));
    }
    const int32_t count = lines.count.get()[i];
    out.reference[i] = reference;
    out.rest[i] = float(rest);
    out.gap[i] = count ? float(reference - lines.positive_sum.get()[i] / count) : 0.0f;
    out.uniform_gap[i] = uniform ? float(reference - lines.sum.get()[i] / double(others)) : 0.0f;
    out.count[i] = count;
  }
}

template <class T, bool kCols, bool kSkip, bool kShared>
void softmax_statistics(const PairSoftmaxFwd& p, const ThreadPool& pool) {
  const Side<T> a = make_side<T>(p.a, p.normalize, Uses{p.symmetric, false, false}, pool);
  Side<T> other;
  if (!p.symmetric) other = make_side<T>(p.b, p.normalize, Uses{true, false, false}, pool);
  const Side<T>& b = p.symmetric ? a : other;
  const PaddedLabels padded(p);
  Gradients<T> none(a, b, nullptr, nullptr, p.a.dtype, 0.0f);
  const int64_t rows = chunk_rows(a.n, b.strips, Lines::kBytes);
  const Kept kept(p, p.kept, true);
  SoftmaxVisit<kCols, kSkip, kShared> visit(p, padded, a.inverse.get(), b.inverse.get(), kept, b.strips, rows);
  sweep(a, b, none, kept, rows, pool, visit);
  if (p.symmetric) visit.join_mirrored(a.n);
  write_statistics(visit.rows, a.n, b.n, p.uniform, p.rows);
  if (kCols && !p.symmetric) write_statistics(visit.cols, b.n, a.n, p.uniform, p.cols);
}

template <class T, bool kCols, bool kSkip>
void softmax_statistics(const PairSoftmaxFwd& p, const ThreadPool& pool) {
  shares_exponential(p) ? softmax_statistics<T, kCols, kSkip, true>(p, pool)
                        : softmax_statistics<T, kCols, kSkip, false>(p, pool);
}

template <class T>
void softmax_fwd(const PairSoftmaxFwd& p, const ThreadPool& pool) {
  const bool cols = p.symmetric || p.cols.reference, skip = p.labels.row_skip;
  if (cols) {
    skip ? softmax_statistics<T, true, true>(p, pool) : softmax_statistics<T, true, false>(p, pool);
  } else {
    skip ? softmax_statistics<T, false, true>(p, pool) : softmax_statistics<T, false, false>(p, pool);
  }
}

}  // namespace fastfuse::cpu::FASTFUSE_ISA
