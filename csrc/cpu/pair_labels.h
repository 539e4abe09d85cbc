// Which pairs of a tile are positives, and which are left out.
#pragma once

#include "cpu/pair_features.h"

namespace fastfuse::cpu::FASTFUSE_ISA {

// Where no logit is larger, exp(x) fits float however many are added, and one exponential serves a row and a column.
constexpr float kSharedBound = 30.0f;
FF_INLINE bool shares_exponential(const PairProblem& p) {
  return p.normalize && p.scale <= kSharedBound && p.scale >= -kSharedBound;
}

// The pairs of one row and kLanes columns that are positives, and those that are left out.
struct Marks {
  vi positive, hidden;
};

template <bool kSkip>
FF_INLINE Marks marks_of(const PairLabels& labels, int32_t row_key, int32_t row_skip, int64_t col) {
  Marks marks{load(labels.col_key + col) == splat(row_key), vi{}};
  if constexpr (kSkip) {
    marks.hidden = load(labels.col_skip + col) == splat(row_skip);
    if (labels.skip_positives) {
      marks.positive &= ~marks.hidden;
    } else {
      marks.hidden &= ~marks.positive;
    }
  }
  return marks;
}

// Labels in arrays that can be read to the end of a strip; the padding's mark nothing.
struct PaddedLabels {
  Buffer<int32_t> key, skip;
  PairLabels labels;

  explicit PaddedLabels(const PairProblem& p) : labels(p.labels) {
    key = padded(p.labels.col_key, p.b.rows);
    labels.col_key = key.get();
    if (!p.labels.col_skip) return;
    skip = padded(p.labels.col_skip, p.b.rows);
    labels.col_skip = skip.get();
  }
  static Buffer<int32_t> padded(const int32_t* from, int64_t n) {
    Buffer<int32_t> to(round_up(n, kStrip));
    __builtin_memcpy(to.get(), from, size_t(n) * sizeof(int32_t));
    for (int64_t j = n; j < round_up(n, kStrip); j++) to.get()[j] = INT32_MIN;
    return to;
  }
};

}  // namespace fastfuse::cpu::FASTFUSE_ISA
