// Sigmoid loss over all pairs and G of it in the same sweep. x = scale c + bias, z = -label x:
//
//     loss = sum softplus(z),   softplus(z) = max(z, 0) + log1p(e),   e = exp(-|z|)
//     dx   = -label sigmoid(z),     sigmoid(z) = (z < 0 ? e : 1) / (1 + e)
#pragma once

#include "cuda/pair_chunk.cuh"

namespace fastfuse::cuda {

struct SigmoidArguments : SweepArguments {
  PairSigmoid p;
};

// log(1 + e) for e in [0, 1], relative error 1.3e-7: a minimax fit of log(1 + e) / e that is 1 at 0.
FF_DEVICE float log1p_unit(float e) {
  constexpr float kFit[] = {5.364813946e-3f, -3.006575078e-2f, 7.920446820e-2f, -1.375379666e-1f, 1.915365229e-1f,
                            -2.485716300e-1f, 3.332132254e-1f, -4.999964796e-1f, 1.0f};
  float p = 0;
#pragma unroll
  for (const float coefficient : kFit) p = fused_multiply_add(p, e, coefficient);
  return e * p;
}

template <class Element_>
struct Sigmoid {
  using Element = Element_;
  using C = PairConfig<Element, 1, false>;
  using Arguments = SigmoidArguments;

  const SigmoidArguments& args;
  const PairShared<C>& shared;
  PairThread who;
  PairRows rows;
  float bias;
  double sum[3] = {0, 0, 0};  // loss, dscale, dbias

  FF_DEVICE Sigmoid(const SigmoidArguments& args, const PairShared<C>& shared, const PairThread& who)
      : args(args), shared(shared), who(who), bias(load_global(args.p.bias)) {}

  static FF_DEVICE bool looks_at_all(const SigmoidArguments&) { return false; }
  static FF_DEVICE void stage_column(const SigmoidArguments& args, const PairShared<C>& shared, int stage, int column,
                                     int j) {
    store_shared(shared.value(stage, 0, column), j < args.p.b.n ? load_global(args.p.b.inverse + j) : 0.0f);
  }

  FF_DEVICE void begin_rows(int row) { rows.load(args.p, who, row); }
  FF_DEVICE void end_rows(int) const {}
  FF_DEVICE void finish() { write_sums(who, sum, args.p.sums); }

  // One pair; its value becomes dx.
  FF_DEVICE void take(bool there, bool positive, int h, float& value, float& loss, float (&dscale)[2],
                      float& dbias) const {
    const float x = fused_multiply_add(value, rows.scaled[h], bias), z = positive ? -x : x;
    const float e = exp_of(z < 0 ? z : -z), share = reciprocal_approx(1.0f + e);
    float g = z < 0 ? e * share : share, softplus = maximum(z, 0.0f) + log1p_unit(e);
    if (positive) g = -g;
    if (!there) g = softplus = 0;
    loss += softplus;
    dbias += g;
    dscale[h] += g * value;
    value = g;
  }

  FF_DEVICE void tile(const TileWalk& at, int stage, bool marked, float (&x)[C::kProducts]) {
    apply_column_inverses(shared, who, stage, x);
    float loss = 0, dbias = 0, dscale[2] = {0, 0};
    if (marked) {
      const PairMarks<C> marks(args.p, shared, who, rows, at.col, stage);
#pragma unroll
      for (int i = 0; i < C::kProducts; i++)
        take(marks.there[i], marks.positive[i], i / 2 % 2, x[i], loss, dscale, dbias);
    } else {
#pragma unroll
      for (int i = 0; i < C::kProducts; i++) take(true, false, i / 2 % 2, x[i], loss, dscale, dbias);
    }
    sum[0] += loss;
    sum[1] += double(dscale[0] * rows.inverse[0]) + double(dscale[1] * rows.inverse[1]);
    sum[2] += dbias;
    if (!args.p.chunk.g) return;
    apply_column_inverses(shared, who, stage, x);
#pragma unroll
    for (int i = 0; i < C::kProducts; i++) x[i] *= rows.inverse[i / 2 % 2];
    write_chunk<C>(args.p, args.p.chunk, who, rows, at.col, x);
  }
};

}  // namespace fastfuse::cuda
