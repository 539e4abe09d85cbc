// Gradients of the softmax losses from the statistics, x_ij = scale * c_ij.
#pragma once

#include "cpu/pair_labels.h"
#include "cpu/pair_sweep.h"

namespace fastfuse::cpu::FASTFUSE_ISA {

// What one direction's gradient takes from a line:  weight * (share * softmax - target),
// softmax = e / (1 + rest), e = exp(x - reference); formed as ((share e - target) - target rest) * inverse, in which
// e - target cancels exactly where the positive dominates. Away from positives and smoothing: e * coefficient.
struct LineGradient {
  Buffer<float> reference, rest, share, inverse, coefficient, positive;  // [n padded]
  Buffer<float> shared;  // coefficient * exp(-reference): times exp(x), where that is the same for a row and a column

  LineGradient(const PairStatistics& s, int64_t n, float smoothing, float weight)
      : reference(padded(n)),
        rest(padded(n)),
        share(padded(n)),
        inverse(padded(n)),
        coefficient(padded(n)),
        positive(padded(n)),
        shared(padded(n)) {
    for (int64_t i = 0; i < padded(n); i++) {
      const bool there = i < n;
      const int32_t count = there ? s.count[i] : 0;
      reference.get()[i] = there ? s.reference[i] : 0.0f;
      rest.get()[i] = there ? s.rest[i] : 0.0f;
      share.get()[i] = (count ? 1.0f - smoothing : 0.0f) + smoothing;
      positive.get()[i] = count ? (1.0f - smoothing) / float(count) : 0.0f;
      inverse.get()[i] = weight / (1.0f + rest.get()[i]);
      coefficient.get()[i] = share.get()[i] * inverse.get()[i];
      shared.get()[i] = coefficient.get()[i] * __builtin_expf(-reference.get()[i]);
    }
  }
  static int64_t padded(int64_t n) { return round_up(n, kStrip); }
};

template <bool kCols, bool kSkip, bool kShared>
struct SoftmaxGradientVisit {
  const PairSoftmaxBwd& p;
  const PaddedLabels& labels;
  const float *row_inverse, *col_inverse;
  const Kept& kept;
  const LineGradient &rows, &cols;
  float row_uniform, col_uniform;  // smoothing / M, smoothing / N
  int64_t strips;
  double* dscale;  // [blocks of rows][strips]

  void operator()(const TileAt& at, const float* products, float* dx) {
    if (kCols && (!p.symmetric || at.mirrored)) {
      visit<true, false>(at, products, dx);
    } else if (kCols) {
      visit<true, true>(at, products, dx);
    } else {
      visit<false, false>(at, products, dx);
    }
  }

#if defined(__AVX512BF16__)
  bool plain(const TileAt& at) const { return kShared && p.label_smoothing == 0 && labels.unmarked(at.row, at.strip); }

  void visit_plain(const TileAt& at, const float* products, const GradientTile& dx) {
    const int16_t* cosines = kept.serves(at.row, at.strip) ? kept.cosines(at.row, at.strip) : nullptr;
    if (kCols) {
      cosines ? visit_plain<true>(at, cosines, dx) : visit_plain<true>(at, products, dx);
    } else {
      cosines ? visit_plain<false>(at, cosines, dx) : visit_plain<false>(at, products, dx);
    }
  }

  // From: int16_t, cosines as they were kept, or float, products.
  template <bool kWithCols, class From>
  void visit_plain(const TileAt& at, const From* from, const GradientTile& dx) {
    constexpr bool kFixed = sizeof(From) == 2;
    const From* next = kFixed && kept.data ? (const From*)kept.cosines(at.row + kBlock, at.strip) : from;
    const float *inverses = row_inverse + at.row, *shared = rows.shared.get() + at.row;
    const float *col_inverses = col_inverse + at.col, *col_shared = kWithCols ? cols.shared.get() + at.col : nullptr;
    const float exponent = p.scale * kLog2e;
    vf dscale_lanes{};
    for (int64_t r = 0; r < kBlock; r += 2) {
      vf row_dscale[2] = {};
      const float factor[2] = {kFixed ? 1.0f / kFixedUnit : inverses[r],
                               kFixed ? 1.0f / kFixedUnit : inverses[r + 1]};  // c over y
      for (int64_t v = 0; v < kStrip; v += 2 * kLanes) {
        const vf col[2] = {load(col_inverses + v), load(col_inverses + v + kLanes)};
        const Quad y = in_step<4>([&](int i) {
          const From* at = from + r * kStrip + quad_at(i, v);
          if constexpr (kFixed) {
            return load_integer(at);
          } else {
            return load(at) * col[i % 2];
          }
        });
        if (kFixed) {
          __builtin_prefetch(next + r * kStrip + v);
          __builtin_prefetch(next + (r + 1) * kStrip + v);
        }
        const Quad e = exp2_plain(in_step<4>([&](int i) { return y.at[i] * splat(factor[i / 2] * exponent); }));
        const Quad g = in_step<4>([&](int i) {
          const vf weight = splat(shared[r + i / 2]);
          return e.at[i] * (kWithCols ? weight + load(col_shared + v + i % 2 * kLanes) : weight);
        });
        for (int i = 0; i < 4; i++) row_dscale[i / 2] = fma(g.at[i], y.at[i], row_dscale[i / 2]);
        dx.put(r, v, in_step<4>([&](int i) { return g.at[i] * (col[i % 2] * splat(inverses[r + i / 2])); }));
      }
      for (int h = 0; h < 2; h++) dscale_lanes = fma(row_dscale[h], splat(factor[h]), dscale_lanes);
    }
    const bool square = kWithCols && p.symmetric && !at.mirrored;  // holds each pair twice
    dscale[at.row / kBlock * strips + at.strip] = reduce_add_double(dscale_lanes) * (square ? 0.5 : 1.0);
  }
#endif

  // kSquare: both directions' gradients of a tile that holds each pair twice.
  template <bool kWithCols, bool kSquare>
  void visit(const TileAt& at, const float* products, float* dx) {
    const int16_t* cosines = kept.serves(at.row, at.strip) ? kept.cosines(at.row, at.strip) : nullptr;
    vf dscale_lanes{};
    const bool smooth = p.label_smoothing > 0;
    const vf scale = splat(p.scale);
    const vf row_uniform_v = splat(row_uniform), col_uniform_v = splat(col_uniform);
    for (int64_t r = 0; r < at.rows; r++) {
      const int64_t i = at.row + r;
      const vf inverse = splat(row_inverse[i]);
      const vf reference = splat(rows.reference.get()[i]), coefficient = splat(rows.coefficient.get()[i]);
      const vf shared = splat(rows.shared.get()[i]);
      const int32_t key = labels.row_key[i], skip = kSkip ? labels.row_skip[i] : 0;
      for (int64_t v = 0; v < at.cols; v += kLanes) {
        const int64_t j = at.col + v;
        float* to = dx + r * kStrip + v;
        const vf inverses = load(col_inverse + j) * inverse;
        const vf c = cosines ? load_fixed(cosines + r * kStrip + v) : load(products + r * kStrip + v) * inverses;
        const vf x = rounded(c * scale);
        const Marks marks = marks_of<kSkip>(labels, key, skip, j);
        if (kShared && !lane_bits(marks.positive | marks.hidden) && at.cols - v >= kLanes && !smooth) {
          const vf weight = kWithCols ? shared + load(cols.shared.get() + j) : shared;
          const vf g = exp_exact(x) * weight;
          dscale_lanes = fma(g, c, dscale_lanes);
          store(to, g * inverses);
          continue;
        }
        const vi there = (lane_index() < splat(int32_t(at.cols - v))) & ~marks.hidden;
        const vf e = select(there, exp_exact(x - reference), vf{});
        vf ec{};
        if constexpr (kWithCols) ec = select(there, exp_exact(x - load(cols.reference.get() + j)), vf{});
        vf g;
        if (smooth || lane_bits(marks.positive)) {
          const vf target = select(marks.positive, splat(rows.positive.get()[i]), vf{}) + row_uniform_v;
          g = ((splat(rows.share.get()[i]) * e - target) - target * splat(rows.rest.get()[i])) *
              splat(rows.inverse.get()[i]);
          if constexpr (kWithCols) {
            const vf col_target = select(marks.positive, load(cols.positive.get() + j), vf{}) + col_uniform_v;
            g += ((load(cols.share.get() + j) * ec - col_target) - col_target * load(cols.rest.get() + j)) *
                 load(cols.inverse.get() + j);
          }
          g = select(lane_index() < splat(int32_t(at.cols - v)), g, vf{});
        } else {
          g = e * coefficient;
          if constexpr (kWithCols) g = fma(ec, load(cols.coefficient.get() + j), g);
        }
        dscale_lanes = fma(g, c, dscale_lanes);
        store(to, g * inverses);
      }
    }
    dscale[at.row / kBlock * strips + at.strip] = reduce_add_double(dscale_lanes) * (kSquare ? 0.5 : 1.0);
  }

  void end_chunk(const ThreadPool&, const Chunk&) {}
};

template <class T, bool kCols, bool kSkip, bool kShared>
void softmax_gradients(const PairSoftmaxBwd& p, const ThreadPool& pool) {
  const bool columns_wanted = p.db || (p.symmetric && p.da);
  const Side<T> a = make_side<T>(p.a, p.normalize, Uses{p.symmetric, p.symmetric, columns_wanted}, pool);
  Side<T> other;
  if (!p.symmetric) other = make_side<T>(p.b, p.normalize, Uses{true, bool(p.da), false}, pool);
  const Side<T>& b = p.symmetric ? a : other;
  const PaddedLabels padded(p);
  const float weight = p.symmetric ? 1.0f : float(double(p.a.rows) / double(p.b.rows));
  const LineGradient rows(p.rows, a.n, p.label_smoothing, 1.0f);
  const LineGradient cols(p.symmetric ? p.rows : p.cols, kCols ? b.n : 0, p.label_smoothing, weight);
  const Kept kept(p, p.label_smoothing > 0 ? nullptr : p.kept, false);
  const int64_t blocks = ceil_div(a.n, kBlock);
  Buffer<double> dscale(blocks * b.strips, true);
  Gradients<T> gradients(a, b, p.da, p.db, p.a.dtype, float(p.unit * p.scale));
  SoftmaxGradientVisit<kCols, kSkip, kShared> visit{p,
                                                    padded,
                                                    a.inverse.get(),
                                                    b.inverse.get(),
                                                    kept,
                                                    rows,
                                                    cols,
                                                    float(p.label_smoothing / double(b.n)),
                                                    float(p.label_smoothing / double(a.n)),
                                                    b.strips,
                                                    dscale.get()};
  sweep(a, b, gradients, kept, gradients.rows, pool, visit);
  double sum = 0;
  for (int64_t i = 0; i < blocks * b.strips; i++) sum += dscale.get()[i];
  *p.dscale = p.unit * sum;
}

template <class T, bool kCols, bool kSkip>
void softmax_gradients(const PairSoftmaxBwd& p, const ThreadPool& pool) {
  shares_exponential(p) ? softmax_gradients<T, kCols, kSkip, true>(p, pool)
                        : softmax_gradients<T, kCols, kSkip, false>(p, pool);
}

template <class T>
void softmax_bwd(const PairSoftmaxBwd& p, const ThreadPool& pool) {
  const bool cols = p.symmetric || p.cols.reference, skip = p.labels.row_skip;
  if (cols) {
    skip ? softmax_gradients<T, true, true>(p, pool) : softmax_gradients<T, true, false>(p, pool);
  } else {
    skip ? softmax_gradients<T, false, true>(p, pool) : softmax_gradients<T, false, false>(p, pool);
  }
}

}  // namespace fastfuse::cpu::FASTFUSE_ISA
