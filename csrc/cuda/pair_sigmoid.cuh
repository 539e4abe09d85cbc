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
  constexpr float kFit[] = {5.364813946e-3f,  -3.006575078e-2f, 7.920446820e-2f,
                            -1.375379666e-1f, 1.915365229e-1f,  -2.485716300e-1f,
                            3.332132254e-1f,  -4.999964796e-1f, 1.0f};
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

  struct TileSums {
    float loss = 0, dbias = 0;
    float dscale[2] = {0, 0};  // of the two rows, without inverse_i
  };

  // Four products, i on, of column j become G.
  FF_DEVICE void take(int stage, int column, int i, const bool (&there)[4], const bool (&positive)[4],
                      float (&x)[C::kProducts], TileSums& sums) const {
    const Two<float> col_inverse = load_two<float>(shared.value(stage, 0, column));
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float softplus[2], dx[2], product[2];  // summed first: long chains of additions would lag, and hold registers
#pragma unroll
      for (int c = 0; c < 2; c++) {
        const int k = 2 * h + c;
        const float cosine = x[i + k] * col_inverse.at[c];  // / inverse_i
        const float logit = fused_multiply_add(cosine, rows.scaled[h], bias), z = positive[k] ? -logit : logit;
        const float e = exp_of(z < 0 ? z : -z), share = reciprocal_approx(1.0f + e), g = z < 0 ? e * share : share;
        softplus[c] = there[k] ? maximum(z, 0.0f) + log1p_unit(e) : 0.0f;
        dx[c] = there[k] ? positive[k] ? -g : g : 0.0f;
        product[c] = dx[c] * cosine;
        x[i + k] = dx[c] * col_inverse.at[c] * rows.inverse[h];
      }
      sums.loss += softplus[0] + softplus[1];
      sums.dbias += dx[0] + dx[1];
      sums.dscale[h] += product[0] + product[1];
    }
  }

  FF_DEVICE void plain_tile(int stage, float (&x)[C::kProducts], TileSums& sums) const {
#pragma unroll
    for (int j = 0; j < C::kProducts / 4; j++) {
      take(stage, who.col(j), 4 * j, {true, true, true, true}, {}, x, sums);
      if (j % 4 == 3) warp_sync();  // keeps the compiler from having too much in flight for its registers
    }
  }

  FF_DEVICE void marked_tile(int stage, float (&x)[C::kProducts], TileSums& sums) const {
#pragma unroll 1
    for (int quarter = 0; quarter < kQuarters; quarter++) {
      const int first = quarter * kQuarter / 4;
      const PairBounds bounds(args.p, rows, shared.first_column(stage) + who.col(first));
      const PairMarks marks(args.p, shared, who, rows, bounds, quarter, stage);
#pragma unroll
      for (int j = 0; j < kQuarter / 4; j++) {
        bool there[4], positive[4];
#pragma unroll
        for (int k = 0; k < 4; k++) there[k] = marks.visible(4 * j + k), positive[k] = marks.positive(4 * j + k);
        take(stage, who.col(first + j), 4 * j, there, positive, x, sums);
        warp_sync();  // as above
      }
      turn(x);
    }
  }

  FF_DEVICE void tile(int stage, bool marked, float (&x)[C::kProducts]) {
    TileSums sums;
    if (marked) {
      marked_tile(stage, x, sums);
    } else {
      plain_tile(stage, x, sums);
    }
    sum[0] += sums.loss;
    sum[1] += double(sums.dscale[0] * rows.inverse[0]) + double(sums.dscale[1] * rows.inverse[1]);
    sum[2] += sums.dbias;
    if (args.p.chunk.g) write_chunk<C>(args.p, args.p.chunk, who, rows, shared.first_column(stage), x);
  }
};

}  // namespace fastfuse::cuda
