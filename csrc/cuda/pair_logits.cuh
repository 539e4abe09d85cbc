// A tile's products as logits, and the marks of its pairs.
//
//     x_ij = ((products_ij inverse_j) (inverse_i scale))       each product rounded: forward and backward see the same bits
#pragma once

#include "cuda/pair_sweep.cuh"

namespace fastfuse::cuda {

inline constexpr float kLog2e = 1.4426950408889634f;

FF_DEVICE float exp_of(float x) { return exp2_approx(x * kLog2e); }  // 1 at 0

// What a consumer's thread knows of its two rows.
struct PairRows {
  int row[2];          // of the problem; may lie beyond its end
  float inverse[2];    // 0 beyond
  float scaled[2];     // inverse * scale
  int64_t key[2], skip[2];

  FF_DEVICE void load(const PairProblem& p, const PairThread& who, int row_tile) {
    const float scale = load_global(p.scale);
#pragma unroll
    for (int h = 0; h < 2; h++) {
      row[h] = row_tile * kPairBlockM + who.row(h);
      const int there = row[h] < p.a.n ? row[h] : p.a.n - 1;
      inverse[h] = row[h] < p.a.n ? load_global(p.a.inverse + there) : 0.0f;
      scaled[h] = inverse[h] * scale;
      key[h] = load_global(p.labels.row_key + there);
      skip[h] = p.labels.row_skip ? load_global(p.labels.row_skip + there) : 0;
    }
  }
};

// products become c_ij / inverse_i.
template <class C>
FF_DEVICE void apply_column_inverses(const PairShared<C>& shared, const PairThread& who, int stage,
                                     float (&x)[C::kProducts]) {
#pragma unroll
  for (int j = 0; j < C::kProducts / 4; j++) {
    const Two<float> inverse = load_two<float>(shared.value(stage, 0, who.col(j)));
#pragma unroll
    for (int i = 0; i < 4; i++) x[4 * j + i] = multiply_exactly(x[4 * j + i], inverse.at[i % 2]);
  }
}

// A bit for each of a thread's products.
template <int kCount>
struct Bits {
  uint32_t word[kCount / 32] = {};

  FF_DEVICE void set(int i, bool value) { word[i / 32] |= uint32_t(value) << i % 32; }
  FF_DEVICE bool operator[](int i) const { return word[i / 32] >> i % 32 & 1; }
};

// The pairs of a thread in a tile that has to be looked at.
template <class C>
struct PairMarks {
  Bits<C::kProducts> there;     // symmetric: from the diagonal on
  Bits<C::kProducts> positive;  // and there
  Bits<C::kProducts> visible;   // there and not left out
  Bits<C::kProducts> own;       // symmetric: a row with itself, which is no pair of a column's

  FF_DEVICE PairMarks(const PairProblem& p, const PairShared<C>& shared, const PairThread& who, const PairRows& rows,
                      int col_tile, int stage) {
#pragma unroll
    for (int j = 0; j < C::kProducts / 4; j++) {
      const Two<int64_t> keys = load_two<int64_t>(shared.key(stage, who.col(j)));
      Two<int64_t> skips{};
      if (p.labels.col_skip) skips = load_two<int64_t>(shared.skip(stage, who.col(j)));
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int h = i / 2, c = i % 2, col = col_tile * C::kBlockN + who.col(j) + c;
        bool is_positive = keys.at[c] == rows.key[h];
        bool hidden = p.labels.col_skip && skips.at[c] == rows.skip[h];
        if (p.labels.skip_positives) {
          is_positive &= !hidden;
        } else {
          hidden &= !is_positive;
        }
        const bool is_there = rows.row[h] < p.a.n && col < p.b.n && (!p.symmetric || rows.row[h] <= col);
        there.set(4 * j + i, is_there);
        positive.set(4 * j + i, is_there && is_positive);
        visible.set(4 * j + i, is_there && !hidden);
        own.set(4 * j + i, p.symmetric && rows.row[h] == col);
      }
    }
  }
};

}  // namespace fastfuse::cuda
