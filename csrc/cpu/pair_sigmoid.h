// Sigmoid loss over all pairs, its gradients in the same sweep. x_ij = scale * c_ij + bias, z = -label x:
//
//   loss = sum softplus(z),   softplus(z) = max(z, 0) + log1p(e),   e = exp(-|z|)
//   sum log1p(e) = log1p(r),  r = prod (1 + e) - 1, term by term  r + e + r e: one logarithm for many pairs
//   dx   = -label sigmoid(z),     sigmoid(z) = (z < 0 ? e : 1) / (1 + e)
#pragma once

#include "cpu/pair_labels.h"
#include "cpu/pair_sweep.h"

namespace fastfuse::cpu::FASTFUSE_ISA {

constexpr int64_t kRowsOfLog = kLanes / 4;  // which are 32 vectors

struct SigmoidSums {
  double loss = 0, dscale = 0, dbias = 0;
};

struct SigmoidVisit {
  const PairSigmoid& p;
  const PaddedLabels& labels;
  const float *row_inverse, *col_inverse;
  int64_t strips;
  SigmoidSums* sums;  // [blocks of rows][strips]

#if defined(__AVX512BF16__)
  // At most: |scale c|, and what a row of a tile adds to log2 (r + 1).
  const float reach = 1.001f * __builtin_fabsf(p.scale);
  const float growth = kStrip / kLanes * __builtin_log2f(1 + __builtin_expf(reach + p.bias));

  bool plain(const TileAt& at) const { return labels.unmarked(at.row, at.strip); }

  void visit_plain(const TileAt& at, const float* products, const GradientTile& to) {
    if (p.normalize && reach + __builtin_fabsf(p.bias) < 80 && growth < 50) {
      visit_plain<true>(at, products, to, __builtin_exp2f(100 - 2 * growth));
    } else {
      visit_plain<false>(at, products, to, 0x1p32f);
    }
  }

  // Of two rows first all e, then what follows from them: two short chains of operations overlap better than one long.
  // u = x / ln 2. Bounded: e = 2^u, softplus = log1p(e) and sigmoid = e / (1 + e) as they are; else e = 2^-|u| is kept
  // with u's sign. `largest`: of r, before two more rows.
  template <bool kBounded>
  void visit_plain(const TileAt& at, const float* products, const GradientTile& to, float largest) {
    const vf bias = splat(p.bias * kLog2e);
    const float factor = p.scale * kLog2e, *inverses = row_inverse + at.row, *col_inverses = col_inverse + at.col;
    alignas(64) float exponentials[2 * kStrip];
    vf dscale{}, dbias{}, hinge{}, product[2] = {};  // r of the even and of the odd rows
    vwide loss{};
    const auto all = [&] { return fma(product[0], product[1], product[0]) + product[1]; };
    for (int64_t r = 0; r < kBlock; r += 2) {
      const float* from = products + r * kStrip;
      for (int64_t v = 0; v < kStrip; v += 2 * kLanes) {
        const vf col[2] = {load(col_inverses + v), load(col_inverses + v + kLanes)};
        const Quad u = in_step<4>([&](int i) {
          return fma(load(from + quad_at(i, v)) * col[i % 2], splat(inverses[r + i / 2] * factor), bias);
        });
        Quad e;
        if constexpr (kBounded) {
          e = exp2_plain(u);
        } else {
          hinge += sum(in_step<4>([&](int i) { return max(u.at[i], vf{}); }));
          e = exp2_plain(
              in_step<4>([&](int i) { return max(splat(-126.0f), (vf)((vi)u.at[i] | INT32_MIN)); }));  // NaN stays
          e = in_step<4>([&](int i) { return (vf)((vi)e.at[i] | ((vi)u.at[i] & INT32_MIN)); });
        }
        for (int i = 0; i < 4; i++) store(exponentials + quad_at(i, v), e.at[i]);
      }
      vf row_dscale[2] = {};
      for (int64_t v = 0; v < kStrip; v += 2 * kLanes) {
        const vf col[2] = {load(col_inverses + v), load(col_inverses + v + kLanes)};
        const Quad kept = in_step<4>([&](int i) { return load(exponentials + quad_at(i, v)); });
        const Quad e = kBounded ? kept : in_step<4>([&](int i) { return absolute(kept.at[i]); });
        const Quad share = in_step<4>([&](int i) { return (vf)_mm512_rcp14_ps((__m512)(splat(1.0f) + e.at[i])); });
        for (int i = 0; i < 4; i++) product[i / 2] = fma(product[i / 2], e.at[i], product[i / 2]) + e.at[i];
        const Quad g = in_step<4>([&](int i) {
          const vf below = e.at[i] * share.at[i];
          return kBounded ? below : select((vi)kept.at[i] < 0, below, share.at[i]);
        });
        dbias += sum(g);
        const Quad dx = in_step<4>([&](int i) { return g.at[i] * col[i % 2]; });
        for (int i = 0; i < 4; i++) row_dscale[i / 2] = fma(dx.at[i], load(from + quad_at(i, v)), row_dscale[i / 2]);
        to.put(r, v, in_step<4>([&](int i) { return dx.at[i] * splat(inverses[r + i / 2]); }));
      }
      for (int h = 0; h < 2; h++) dscale = fma(row_dscale[h], splat(inverses[r + h]), dscale);
      if (lane_bits((vi)(all() > splat(largest)))) {
        loss += widen(log1p_wide(all()));
        product[0] = product[1] = vf{};
      }
    }
    loss += widen(log1p_wide(all())) + widen(hinge) * double(kLn2);
    sums[at.row / kBlock * strips + at.strip] = {reduce_add(loss), reduce_add_double(dscale), reduce_add_double(dbias)};
  }
#endif

  void operator()(const TileAt& at, const float*, float* tile) {
    const vf scale = splat(p.scale), bias = splat(p.bias);
    vwide tile_loss{}, tile_dscale{}, tile_dbias{};
    vf product{};  // r of kRowsOfLog rows, at most 2^32
    for (int64_t r = 0; r < at.rows; r++) {
      const int64_t i = at.row + r;
      const vf inverse = splat(row_inverse[i]);
      const vi key = splat(labels.row_key[i]);
      vf loss{}, dscale{}, dbias{};
      for (int64_t v = 0; v < at.cols; v += kLanes) {
        float* to = tile + r * kStrip + v;
        const vf inverses = load(col_inverse + at.col + v) * inverse, c = load(to) * inverses;
        const vi positive = load(labels.col_key + at.col + v) == key;
        const uint32_t positives = lane_bits(positive);
        const vf x = fma(c, scale, bias), z = positives ? select(positive, -x, x) : x;
        vf e = exp_exact(-absolute(x));
        const vf share = reciprocal(splat(1.0f) + e);
        vf g = select((vi)(z < vf{}), e * share, share), hinge = max(z, vf{});
        if (positives) g = select(positive, -g, g);
        if (at.cols - v < kLanes) {
          const vi there = lane_index() < splat(int32_t(at.cols - v));
          g = select(there, g, vf{});
          hinge = select(there, hinge, vf{});
          e = select(there, e, vf{});
        }
        loss += hinge;
        product = fma(product, e, product) + e;
        dbias += g;
        dscale = fma(g, c, dscale);
        store(to, g * inverses);
      }
      if (r % kRowsOfLog == kRowsOfLog - 1 || r == at.rows - 1) {
        loss += log1p_wide(product);
        product = vf{};
      }
      tile_loss += widen(loss);
      tile_dscale += widen(dscale);
      tile_dbias += widen(dbias);
    }
    sums[at.row / kBlock * strips + at.strip] = {reduce_add(tile_loss), reduce_add(tile_dscale),
                                                 reduce_add(tile_dbias)};
  }

  void end_chunk(const ThreadPool&, const Chunk&) {}
};

template <class T>
void sigmoid_loss(const PairSigmoid& p, const ThreadPool& pool) {
  const Side<T> a = make_side<T>(p.a, p.normalize, Uses{false, false, bool(p.db)}, pool);
  const Side<T> b = make_side<T>(p.b, p.normalize, Uses{true, bool(p.da), false}, pool);
  const PaddedLabels padded(p);
  const int64_t tiles = ceil_div(a.n, kBlock) * b.strips;
  Buffer<SigmoidSums> sums(tiles, true);
  Gradients<T> gradients(a, b, p.da, p.db, DType::kFloat32, p.scale);
  SigmoidVisit visit{p, padded, a.inverse.get(), b.inverse.get(), b.strips, sums.get()};
  sweep(a, b, gradients, Kept(), gradients.rows, pool, visit);
  SigmoidSums total;
  for (int64_t t = 0; t < tiles; t++) {
    total.loss += sums.get()[t].loss;
    total.dscale += sums.get()[t].dscale;
    total.dbias += sums.get()[t].dbias;
  }
  *p.loss = total.loss;
  *p.dscale = total.dscale;
  *p.dbias = total.dbias;
}

}  // namespace fastfuse::cpu::FASTFUSE_ISA
