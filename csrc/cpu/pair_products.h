// The products of one tile: its logits, and where gradients are wanted two more of its dx.
//
//   logits            tile[rows][kStrip]   = rows . strip^T
//   row_gradient      da[rows][ld]       (+)= dx . columns           dx by rows
//   column_gradient   db of one strip    (+)= dx^T . rows            dx by rows (float) or by pairs of rows (bf16)
//
// db is [m padded to kStrip][ld], or where kTransposed [strips][dim padded to 16][kStrip].
//
// Each also asks memory for what the next product of its kind will read: the caches' own prefetchers do not follow from
// one small product to the next.
#pragma once

#include "cpu/ahead.h"
#include "cpu/pair_features.h"

namespace fastfuse::cpu::FASTFUSE_ISA {

// Words are what gemm.h multiplies: floats, or pairs of bf16.
template <class T, class Term>
struct LaneProducts {
  static constexpr bool kTransposed = false;
  static constexpr int64_t kEach = 4 / sizeof(T);                        // elements of a word
  static constexpr int64_t kPart = sizeof(T) == 4 ? kChain : INT64_MAX;  // words of a part of a logit
  static constexpr int64_t kTall = kAccumulators / kPanelVectors;        // rows of gemm's widest block
  struct Session {};

  static const float* words(const T* p) { return reinterpret_cast<const float*>(p); }

  // `next`: rows that will be read soon, [kBlock][ld], or null.
  static void logits(const T* rows, int64_t ld, int64_t count, const T* strip, int64_t cols, int64_t dim, float* tile,
                     const T* next) {
    const float *a = words(rows), *b = words(strip), *coming = words(rows + kBlock * ld),
                *later = next ? words(next) : coming;
    const int64_t depth = ceil_div(dim, kEach);
    for (int64_t k = 0; k < depth; k += kPart) {
      const Ahead<2> ahead{{stream_of(coming + k, ld / kEach), stream_of(later + k, ld / kEach)}};
      for_column_panels<T>([&](int64_t first, int64_t width) {
        if (first >= cols) return;
        const auto product = [&](const auto& beside) {
          gemm<false, Term>(count, min_of(width, cols - first), min_of(kPart, depth - k), a + k, ld / kEach,
                            b + first * depth + k * width, width, tile + first, kStrip, k > 0, beside);
        };
        first ? product(Alone{}) : product(ahead);
      });
    }
  }

  // `next`: the dx of the next strip.
  static void row_gradient(const Side<T>& b, int64_t rows, const T* dx, int64_t col, int64_t cols, float* da,
                           bool accumulate, const T* next) {
    const float *columns = words(b.summed_row(col)), *coming = words(b.summed_row(col + kStrip));
    for_panels(ceil_div(b.dim, kLanes), [&](int64_t first, int64_t vectors) {
      const int64_t c = first * kLanes, count = vectors * kLanes;
      const Ahead<2> ahead{{stream_of(words(next), kStrip / kEach), stream_of(coming + c, b.ld)}};
      gemm<false, Term>(rows, count, ceil_div(cols, kEach), words(dx), kStrip / kEach, columns + c, b.ld, da + c, b.ld,
                        accumulate, ahead);
    });
  }

  static void column_gradient(const Side<T>& a, int64_t row, int64_t rows, const T* dx, int64_t cols, float* db,
                              bool accumulate) {
    constexpr int64_t kDepth = 128;  // words of dx and of features that stay in L1
    const int64_t depth = ceil_div(rows, kEach);
    for (int64_t k = 0; k < depth; k += kDepth) {
      const float *from = words(dx) + k * kStrip, *features = words(a.summed_row(row)) + k * a.ld;
      for_panels(ceil_div(a.dim, kLanes), [&](int64_t first, int64_t vectors) {
        const int64_t c = first * kLanes, count = vectors * kLanes;
        const Stream sums = stream_of(db + kTall * a.ld + c, a.ld);
        gemm<true, Term>(cols, count, min_of(kDepth, depth - k), from, kStrip, features + c, a.ld, db + c, a.ld,
                         accumulate || k > 0, Ahead<1>{{sums}});
      });
    }
  }
};

template <class T>
struct Products;

template <>
struct Products<float> : LaneProducts<float, FloatTerm> {};

#if defined(__AMX_BF16__)
template <>
struct Products<bf16> {
  static constexpr bool kTransposed = true;
  using Session = amx::Session;

  static void logits(const bf16* rows, int64_t ld, int64_t count, const bf16* strip, int64_t cols, int64_t dim,
                     float* tile, const bf16*) {
    amx::gemm(count, cols, round_up(dim, 32), rows, ld, strip, kStrip, tile, kStrip, false);
  }
  static void row_gradient(const Side<bf16>& b, int64_t rows, const bf16* dx, int64_t col, int64_t cols, float* da,
                           bool accumulate, const bf16*) {
    amx::gemm(rows, b.dim, round_up(cols, 32), dx, kStrip, b.summed_row(col), b.ld, da, b.ld, accumulate);
  }
  static void column_gradient(const Side<bf16>& a, int64_t row, int64_t rows, const bf16* dx, int64_t cols, float* db,
                              bool accumulate) {
    amx::gemm(round_up(a.dim, 16), cols, round_up(rows, 32), a.panel(row), kPanel, dx, kStrip, db, kStrip, accumulate);
  }
};
#elif defined(__AVX512BF16__)
template <>
struct Products<bf16> : LaneProducts<bf16, PairTerm> {};
#endif

}  // namespace fastfuse::cpu::FASTFUSE_ISA
