// The products of one tile: its logits, and where gradients are wanted two more of its dx.
//
//   logits            tile[rows][kStrip]   = rows . strip^T
//   row_gradient      da[rows][ld]       (+)= dx . columns           dx by rows
//   column_gradient   db of one strip     += dx^T . rows             dx by rows (float) or by pairs of rows (bf16)
//
// db is [m padded to kStrip][ld], or where kTransposed [strips][dim padded to 16][kStrip].
#pragma once

#include "cpu/pair_features.h"

namespace fastfuse::cpu::FASTFUSE_ISA {

template <class T>
struct Products;

template <>
struct Products<float> {
  static constexpr bool kTransposed = false;
  struct Session {};

  // In parts of the sum: at a scale of 100 the rounding of one long chain shows.
  static void logits(const float* rows, int64_t ld, int64_t count, const float* strip, int64_t cols, int64_t dim,
                     float* tile) {
    constexpr int64_t kPart = 64;
    for (int64_t k = 0; k < dim; k += kPart) {
      gemm<false>(count, cols, min_of(kPart, dim - k), rows + k, ld, strip + k * kStrip, kStrip, tile, kStrip, k > 0);
    }
  }
  static void row_gradient(const Side<float>& b, int64_t rows, const float* dx, int64_t col, int64_t cols, float* da,
                           bool accumulate) {
    gemm<false>(rows, b.dim, cols, dx, kStrip, b.row(col), b.ld, da, b.ld, accumulate);
  }
  static void column_gradient(const Side<float>& a, int64_t row, int64_t rows, const float* dx, int64_t cols,
                              float* db) {
    constexpr int64_t kPart = 128;  // rows whose dx and features stay in L1
    for (int64_t k = 0; k < rows; k += kPart) {
      gemm<true>(cols, a.dim, min_of(kPart, rows - k), dx + k * kStrip, kStrip, a.row(row + k), a.ld, db, a.ld, true);
    }
  }
};

#if defined(__AMX_BF16__)
template <>
struct Products<bf16> {
  static constexpr bool kTransposed = true;
  using Session = amx::Session;

  static void logits(const bf16* rows, int64_t ld, int64_t count, const bf16* strip, int64_t cols, int64_t dim,
                     float* tile) {
    amx::gemm(count, cols, round_up(dim, 32), rows, ld, strip, kStrip, tile, kStrip, false);
  }
  static void row_gradient(const Side<bf16>& b, int64_t rows, const bf16* dx, int64_t col, int64_t cols, float* da,
                           bool accumulate) {
    amx::gemm(rows, b.dim, round_up(cols, 32), dx, kStrip, b.pair_row(col), b.ld, da, b.ld, accumulate);
  }
  static void column_gradient(const Side<bf16>& a, int64_t row, int64_t rows, const bf16* dx, int64_t cols, float* db) {
    amx::gemm(round_up(a.dim, 16), cols, round_up(rows, 32), a.panel(row), kPanel, dx, kStrip, db, kStrip, true);
  }
};
#elif defined(__AVX512BF16__)
template <>
struct Products<bf16> {
  static constexpr bool kTransposed = false;
  struct Session {};

  static void logits(const bf16* rows, int64_t ld, int64_t count, const bf16* strip, int64_t cols, int64_t dim,
                     float* tile) {
    gemm<false, PairTerm>(count, cols, ceil_div(dim, 2), as_pairs(rows), ld / 2, as_pairs(strip), kStrip, tile, kStrip,
                          false);
  }
  static void row_gradient(const Side<bf16>& b, int64_t rows, const bf16* dx, int64_t col, int64_t cols, float* da,
                           bool accumulate) {
    gemm<false, PairTerm>(rows, b.dim, ceil_div(cols, 2), as_pairs(dx), kStrip / 2, as_pairs(b.pair_row(col)), b.ld, da,
                          b.ld, accumulate);
  }
  static void column_gradient(const Side<bf16>& a, int64_t row, int64_t rows, const bf16* dx, int64_t cols, float* db) {
    gemm<true, PairTerm>(cols, a.dim, ceil_div(rows, 2), as_pairs(dx), kStrip, as_pairs(a.pair_row(row)), a.ld, db,
                         a.ld, true);
  }
};
#endif

}  // namespace fastfuse::cpu::FASTFUSE_ISA
