// tile[rows][kStrip] = rows . strip^T, products of float or of bf16 (AMX).
#pragma once

#include "cpu/pair_features.h"

namespace fastfuse::cpu::FASTFUSE_ISA {

template <class T>
struct Products;

template <>
struct Products<float> {
  struct Session {};

  // In parts of the sum: at a scale of 100 the rounding of one long chain shows.
  static void logits(const float* rows, int64_t ld, int64_t count, const float* strip, int64_t cols, int64_t dim,
                     float* tile) {
    constexpr int64_t kPart = 64;
    for (int64_t k = 0; k < dim; k += kPart) {
      gemm<false>(count, cols, min_of(kPart, dim - k), rows + k, ld, strip + k * kStrip, kStrip, tile, kStrip, k > 0);
    }
  }
};

#if defined(__AMX_BF16__)
template <>
struct Products<bf16> {
  using Session = amx::Session;

  static void logits(const bf16* rows, int64_t ld, int64_t count, const bf16* strip, int64_t cols, int64_t dim,
                     float* tile) {
    amx::gemm(count, cols, round_up(dim, 32), rows, ld, strip, kStrip, tile, kStrip, false);
  }
};
#endif

}  // namespace fastfuse::cpu::FASTFUSE_ISA
