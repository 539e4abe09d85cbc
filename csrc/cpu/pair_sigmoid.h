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
  const PairLabels& labels;
  const float *row_inverse, *col_inverse;
  int64_t strips;
  SigmoidSums* sums;  // [blocks of rows][strips]

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
  SigmoidVisit visit{p, padded.labels, a.inverse.get(), b.inverse.get(), b.strips, sums.get()};
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
