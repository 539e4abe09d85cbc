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

// The columns' keys where they can be read to the end of a strip; the padding's mark nothing.
struct PaddedKeys {
  Buffer<int32_t> keys;
  Buffer<int32_t> least, largest;  // [strips]

  PaddedKeys() = default;
  PaddedKeys(const int32_t* from, int64_t n)
      : keys(round_up(n, kStrip)), least(ceil_div(n, kStrip)), largest(ceil_div(n, kStrip)) {
    __builtin_memcpy(keys.get(), from, size_t(n) * sizeof(int32_t));
    for (int64_t j = n; j < round_up(n, kStrip); j++) keys.get()[j] = INT32_MIN;
    for (int64_t s = 0; s < ceil_div(n, kStrip); s++) {
      int32_t low = INT32_MAX, high = INT32_MIN;
      for (int64_t j = s * kStrip; j < min_of(n, (s + 1) * kStrip); j++) {
        low = min_of(low, keys.get()[j]);
        high = max_of(high, keys.get()[j]);
      }
      least.get()[s] = low;
      largest.get()[s] = high;
    }
  }

  // Whether none of a whole tile's pairs, of rows with keys row_key[kBlock], has equal keys.
  bool apart(const int32_t* row_key, int64_t strip) const {
    const vi low = splat(least.get()[strip]), high = splat(largest.get()[strip]);
    uint32_t before = ~0u, after = ~0u, equal = 0;
    for (int64_t r = 0; r < kBlock; r += kLanes) {
      const vi key = load(row_key + r);
      before &= lane_bits((vi)(key < low));
      after &= lane_bits((vi)(key > high));
    }
    constexpr uint32_t kAll = (1u << kLanes) - 1;
    if ((before & kAll) == kAll || (after & kAll) == kAll) return true;
    for (int64_t r = 0; r < kBlock; r++) {
      for (int64_t v = 0; v < kStrip; v += kLanes) {
        equal |= lane_bits((vi)(load(keys.get() + strip * kStrip + v) == splat(row_key[r])));
      }
    }
    return equal == 0;
  }
};

struct PaddedLabels : PairLabels {
  PaddedKeys keys, skips;

  explicit PaddedLabels(const PairProblem& p) : PairLabels(p.labels), keys(p.labels.col_key, p.b.rows) {
    col_key = keys.keys.get();
    if (!col_skip) return;
    skips = PaddedKeys(p.labels.col_skip, p.b.rows);
    col_skip = skips.keys.get();
  }
  // Whether a whole tile has neither positives nor hidden pairs.
  bool unmarked(int64_t row, int64_t strip) const {
    return keys.apart(row_key + row, strip) && (!col_skip || skips.apart(row_skip + row, strip));
  }
};

}  // namespace fastfuse::cpu::FASTFUSE_ISA
