// Sigmoid loss over all pairs, its gradients in the same sweep. x_ij = scale * c_ij + bias, z = -label x:
//
//   loss = sum softplus(z),   softplus(z) = max(z, 0) + log1p(e),   e = exp(-|z|)
//   dx   = -label sigmoid(z),     sigmoid(z) = (z < 0 ? e : 1) / (1 + e)
#pragma once

#include "cpu/pair_labels.h"
#include "cpu/pair_sweep.h"

namespace fastfuse::cpu::FASTFUSE_ISA {

struct SigmoidSums {
  double loss = 0, dscale = 0, dbias = 0;
};

struct SigmoidVisit {
  const PairSigmoid& p;
  const PairLabels& labels;
  const float *row_inverse, *col_inverse;
  int64_t strips;
  SigmoidSums* sums;  // [blocks of rows][strips]

  void operator()(const TileAt& at, float* tile) {
    const vf scale = splat(p.scale), bias = splat(p.bias);
    vwide tile_loss{}, tile_dscale{}, tile_dbias{};
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
        const vf e = exp_exact(-absolute(x)), share = reciprocal(splat(1.0f) + e);
        vf g = select((vi)(z < vf{}), e * share, share), softplus = max(z, vf{}) + log1p_unit(e);
        if (positives) g = select(positive, -g, g);
        if (at.cols - v < kLanes) {
          const vi there = lane_index() < splat(int32_t(at.cols - v));
          g = select(there, g, vf{});
          softplus = select(there, softplus, vf{});
        }
        loss += softplus;
        dbias += g;
        dscale = fma(g, c, dscale);
        store(to, g * inverses);
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
  Gradients<T> gradients(a, b, p.da, p.db);
  SigmoidVisit visit{p, padded.labels, a.inverse.get(), b.inverse.get(), b.strips, sums.get()};
  sweep(a, b, gradients, gradients.rows, pool, visit);
  SigmoidSums total;
  for (int64_t t = 0; t < tiles; t++) {
    total.loss += sums.get()[t].loss;
    total.dscale += sums.get()[t].dscale;
    total.dbias += sums.get()[t].dbias;
  }
  *p.loss = total.loss;
  *p.dscale = total.dscale;
  *p.dbias = total.dbias;
  if (gradients.wanted()) write_gradients(a, b, gradients, p.scale, p.da, p.db, DType::kFloat32, pool);
}

}  // namespace fastfuse::cpu::FASTFUSE_ISA
