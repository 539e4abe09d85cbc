// G of the softmax losses from the statistics, x = scale c. What a line's losses give a pair:
//
//     weight (share softmax - target),   softmax = e / (1 + rest),   e = exp(x - reference)
//
// formed as ((share e - target) - target rest) weight / (1 + rest), in which e - target cancels exactly where the
// positive dominates; away from positives and smoothing it is e coefficient, where e = exp2(c scale log2(e) + offset) is
// good enough. 1 / N and the scale come in later, in float32.
#pragma once

#include "cuda/pair_chunk.cuh"

namespace fastfuse::cuda {

struct SoftmaxBwdArguments : SweepArguments {
  PairSoftmaxBwd p;
  float row_uniform, col_uniform;  // label_smoothing / M, label_smoothing / N
  float col_weight;                // N / M; 1 where symmetric
};

// A line's numbers: kReference, kRest as stored; kPositive: (1 - smoothing) / count; kInverse: weight / (1 + rest);
// kCoefficient: share * inverse; kOffset: -reference log2(e).
enum LineNumber { kReference, kRest, kPositive, kInverse, kCoefficient, kOffset, kLineNumbers };

// share: 1 - smoothing where the line has a positive, + smoothing
FF_DEVICE float share_of(float positive, float smoothing) {
  return (positive > 0 ? 1.0f - smoothing : 0.0f) + smoothing;
}

FF_DEVICE void load_line(const PairStatistics& s, int n, int i, float smoothing, float weight,
                         float (&number)[kLineNumbers]) {
  const int count = load_global(s.count + i);
  number[kReference] = load_global(s.values + i);
  number[kRest] = load_global(s.values + n + i);
  number[kPositive] = count ? (1.0f - smoothing) / float(count) : 0.0f;
  number[kInverse] = weight / (1.0f + number[kRest]);
  number[kCoefficient] = share_of(number[kPositive], smoothing) * number[kInverse];
  number[kOffset] = -number[kReference] * kLog2e;
}

FF_DEVICE float line_gradient(float e, float share, float target, float rest, float inverse) {
  return ((share * e - target) - target * rest) * inverse;
}

// kCols: the columns have losses too.
template <class Element_, bool kCols>
struct SoftmaxBwd {
  using Element = Element_;
  using C = PairConfig<Element, 1 + kLineNumbers, false>;
  using Arguments = SoftmaxBwdArguments;

  const SoftmaxBwdArguments& args;
  const PairShared<C>& shared;
  PairThread who;
  PairRows rows;
  float scaled[2], offset[2], coefficient[2];  // of the rows; scaled: inverse_i scale log2(e)
  double sum[1] = {0};

  FF_DEVICE SoftmaxBwd(const SoftmaxBwdArguments& args, const PairShared<C>& shared, const PairThread& who)
      : args(args), shared(shared), who(who) {}

  static FF_DEVICE bool looks_at_all(const SoftmaxBwdArguments& args) { return args.p.label_smoothing > 0; }
  static FF_DEVICE void stage_column(const SoftmaxBwdArguments& args, const PairShared<C>& shared, int stage,
                                     int column, int j) {
    const PairSoftmaxBwd& p = args.p;
    const bool there = j < p.b.n;
    float number[kLineNumbers] = {};
    if (there && kCols) load_line(p.symmetric ? p.rows : p.cols, p.b.n, j, p.label_smoothing, args.col_weight, number);
    store_shared(shared.value(stage, 0, column), there ? load_global(p.b.inverse + j) : 0.0f);
#pragma unroll
    for (int i = 0; i < kLineNumbers; i++) store_shared(shared.value(stage, 1 + i, column), number[i]);
  }

  FF_DEVICE void begin_rows(int row) {
    rows.load(args.p, who, row);
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float number[kLineNumbers];
      load_row(h, number);
      scaled[h] = rows.scaled[h] * kLog2e;
      offset[h] = number[kOffset];
      coefficient[h] = number[kCoefficient];
    }
  }
  FF_DEVICE void load_row(int h, float (&number)[kLineNumbers]) const {
    const int there = rows.row[h] < args.p.a.n ? rows.row[h] : args.p.a.n - 1;
    load_line(args.p.rows, args.p.a.n, there, args.p.label_smoothing, 1.0f, number);
  }
  FF_DEVICE void end_rows(int) const {}
  FF_DEVICE void finish() { write_sums(who, sum, args.p.sums); }

  // Two neighbouring columns.
  FF_DEVICE Two<float> column(int stage, LineNumber number, int column) const {
    return load_two<float>(shared.value(stage, 1 + number, column));
  }

  // What the plain pairs of two neighbouring columns need of these.
  struct Columns {
    Two<float> inverse, offset, coefficient;
  };
  FF_DEVICE Columns columns(int stage, int j) const {
    const int col = who.col(j);
    return {load_two<float>(shared.value(stage, 0, col)), column(stage, kOffset, col),
            column(stage, kCoefficient, col)};
  }

  // Products become G. dscale: of the two rows, without inverse_i. Two steps at a time, and what the next two need under
  // way: with more in flight registers would not last.
  FF_DEVICE void plain_tile(int stage, float (&x)[C::kProducts], float (&dscale)[2]) const {
    Columns next[2] = {columns(stage, 0), columns(stage, 1)};
#pragma unroll
    for (int j = 0; j < C::kProducts / 4; j++) {
      const Columns col = next[j % 2];
      if (j + 2 < C::kProducts / 4) next[j % 2] = columns(stage, j + 2);
#pragma unroll
      for (int h = 0; h < 2; h++) {
        float pair = 0;  // summed first: dscale's chain of additions would lag, and hold registers
#pragma unroll
        for (int c = 0; c < 2; c++) {
          float& value = x[4 * j + 2 * h + c];
          const float cosine = value * col.inverse.at[c];  // / inverse_i
          float g = exp2_approx(fused_multiply_add(cosine, scaled[h], offset[h])) * coefficient[h];
          if (kCols) {
            const float e = exp2_approx(fused_multiply_add(cosine, scaled[h], col.offset.at[c]));
            g = fused_multiply_add(e, col.coefficient.at[c], g);
          }
          pair = fused_multiply_add(g, cosine, pair);
          value = g * col.inverse.at[c] * rows.inverse[h];
        }
        dscale[h] += pair;
      }
      if (j % 2 == 1) warp_sync();
    }
  }

  FF_DEVICE void marked_quarter(const PairBounds& bounds, const PairMarks& marks, int quarter, int stage,
                                float (&x)[C::kProducts], float (&dscale)[2]) const {
    float line[2][kLineNumbers];
#pragma unroll
    for (int h = 0; h < 2; h++) load_row(h, line[h]);
    const float smoothing = args.p.label_smoothing, scale = load_global(args.p.scale);
#pragma unroll
    for (int j = 0; j < kQuarter / 4; j++) {
      const int col = who.col(quarter * kQuarter / 4 + j);
      const Two<float> col_inverse = load_two<float>(shared.value(stage, 0, col));
      const Two<float> col_reference = column(stage, kReference, col), rest = column(stage, kRest, col);
      const Two<float> positive = column(stage, kPositive, col), inverse = column(stage, kInverse, col);
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const float (&row)[kLineNumbers] = line[h];
        float pair[2];
#pragma unroll
        for (int c = 0; c < 2; c++) {
          const int at = 4 * j + 2 * h + c;
          const bool visible = marks.visible(at), is_positive = marks.positive(at);
          const float cosine = multiply_exactly(x[at], col_inverse.at[c]);
          const float logit = multiply_exactly(cosine, multiply_exactly(rows.inverse[h], scale));
          float g = line_gradient(visible ? exp_of(logit - row[kReference]) : 0.0f, share_of(row[kPositive], smoothing),
                                  (is_positive ? row[kPositive] : 0.0f) + args.row_uniform, row[kRest], row[kInverse]);
          if (kCols && !bounds.own(at)) {
            g +=
                line_gradient(visible ? exp_of(logit - col_reference.at[c]) : 0.0f, share_of(positive.at[c], smoothing),
                              (is_positive ? positive.at[c] : 0.0f) + args.col_uniform, rest.at[c], inverse.at[c]);
          }
          if (!bounds.there(at)) g = 0;
          pair[c] = g * cosine;
          x[at] = g * col_inverse.at[c] * rows.inverse[h];
        }
        dscale[h] += pair[0] + pair[1];
      }
    }
  }

  FF_DEVICE void tile(int stage, bool marked, float (&x)[C::kProducts]) {
    float dscale[2] = {0, 0};
    if (marked) {
#pragma unroll 1
      for (int quarter = 0; quarter < kQuarters; quarter++) {
        const PairBounds bounds(args.p, rows, shared.first_column(stage) + who.col(quarter * kQuarter / 4));
        const PairMarks marks(args.p, shared, who, rows, bounds, quarter, stage);
        marked_quarter(bounds, marks, quarter, stage, x, dscale);
        turn(x);
      }
    } else {
      plain_tile(stage, x, dscale);
    }
    sum[0] += double(dscale[0] * rows.inverse[0]) + double(dscale[1] * rows.inverse[1]);
    if (args.p.chunk.g) write_chunk<C>(args.p, args.p.chunk, who, rows, shared.first_column(stage), x);
  }
};

}  // namespace fastfuse::cuda
