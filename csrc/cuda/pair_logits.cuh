// What makes logits of a tile's products, and the marks of its pairs.
//
//     x_ij = (products_ij inverse_j) (inverse_i scale)       each product rounded: forward and backward see the same bits
#pragma once

#include "cuda/pair_sweep.cuh"

namespace fastfuse::cuda {

inline constexpr float kLog2e = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

FF_DEVICE float exp_of(float x) { return exp2_approx(x * kLog2e); }  // 1 at 0

// What a consumer's thread knows of its two rows.
struct PairRows {
  int row[2];        // of the problem; may lie beyond its end
  float inverse[2];  // 0 beyond
  float scaled[2];   // inverse * scale

  FF_DEVICE void load(const PairProblem& p, const PairThread& who, int row_tile) {
    const float scale = load_global(p.scale);
#pragma unroll
    for (int h = 0; h < 2; h++) {
      row[h] = row_tile * kPairBlockM + who.row(h);
      inverse[h] = row[h] < p.a.n ? load_global(p.a.inverse + row[h]) : 0.0f;
      scaled[h] = inverse[h] * scale;
    }
  }
};

// Tiles that have to be looked at are worked on in quarters of their columns, each in turn in the first quarter of a
// thread's products, so that there is one copy of that code. Four turns bring all back to their places.
inline constexpr int kQuarters = 4, kQuarter = kPairBlockN / 2 / kQuarters;  // products

template <int kCount>
FF_DEVICE void turn(float (&x)[kCount]) {
  float first[kQuarter];
#pragma unroll
  for (int i = 0; i < kQuarter; i++) first[i] = x[i];
#pragma unroll
  for (int i = 0; i < kCount; i++) x[i] = i + kQuarter < kCount ? x[i + kQuarter] : first[i + kQuarter - kCount];
}

// Which pairs of a thread's rows there are among columns from `first` on: those within the problem, symmetric from the
// diagonal on. i: of the products, a constant. Of rows beyond the end, whose inverse is 0, nothing is told.
struct PairBounds {
  int end;       // columns, counted from the first
  int diagonal;  // the one that is row 0 itself, symmetric; else before all others

  FF_DEVICE PairBounds(const PairProblem& p, const PairRows& rows, int first) {
    end = p.b.n - first;
    diagonal = p.symmetric ? rows.row[0] - first : -kPairBlockN;
  }
  FF_DEVICE bool there(int i) const { return column(i) < end && column(i) - row(i) >= diagonal; }
  FF_DEVICE bool own(int i) const {
    return column(i) - row(i) == diagonal;
  }  // a row with itself: no pair of a column's

  static FF_DEVICE constexpr int column(int i) { return i / 4 * 8 + i % 2; }
  static FF_DEVICE constexpr int row(int i) { return i / 2 % 2 * 8; }
};

// What the labels say of the pairs of a quarter: a bit for each product.
struct PairMarks {
  uint32_t positives = 0, visibles = 0;

  FF_DEVICE bool positive(int i) const { return positives >> i & 1; }
  FF_DEVICE bool visible(int i) const { return visibles >> i & 1; }  // there and not left out
  FF_DEVICE int positives_of_row(int h) const { return count_bits(positives & (h ? 0xccccccccu : 0x33333333u)); }

  template <class C>
  FF_DEVICE PairMarks(const PairProblem& p, const PairShared<C>& shared, const PairThread& who, const PairRows& rows,
                      const PairBounds& bounds, int quarter, int stage) {
    int64_t key[2], skip[2];
    bool row_there[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
      row_there[h] = rows.row[h] < p.a.n;
      const int row = row_there[h] ? rows.row[h] : p.a.n - 1;
      key[h] = load_global(p.labels.row_key + row);
      skip[h] = p.labels.row_skip ? load_global(p.labels.row_skip + row) : 0;
    }
#pragma unroll 2
    for (int j = 0; j < kQuarter / 4; j++) {
      const int column = who.col(quarter * kQuarter / 4 + j);
      const Two<int64_t> keys = load_two<int64_t>(shared.label(stage, 0, column));
      Two<int64_t> skips{};
      if (p.labels.col_skip) skips = load_two<int64_t>(shared.label(stage, 1, column));
#pragma unroll
      for (int i = 0; i < 4; i++) {
        bool positive = keys.at[i % 2] == key[i / 2];
        bool hidden = p.labels.col_skip && skips.at[i % 2] == skip[i / 2];
        if (p.labels.skip_positives) {
          positive &= !hidden;
        } else {
          hidden &= !positive;
        }
        const bool there = row_there[i / 2] && bounds.there(4 * j + i);
        positives |= uint32_t(there && positive) << (4 * j + i);
        visibles |= uint32_t(there && !hidden) << (4 * j + i);
      }
    }
  }
};

}  // namespace fastfuse::cuda
