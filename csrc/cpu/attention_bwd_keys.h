// Gradients of one block of keys, dK or dV: factor x the sum of a product of each query tile.
//
// They go to the rows of the result at once where one query tile has all queries, are summed in them where these are
// float and whole vectors wide, and else in a float scratch, rounded when the block is done.
#pragma once

#include "cpu/simd.h"

namespace fastfuse::cpu::FASTFUSE_ISA {

template <class Engine>
class KeyGradient {
 public:
  using T = typename Engine::Element;
  using Packed = typename Engine::Packed;

  // result: [block][dim] or null, not wanted; scratch: [block][round_up(dim, 16)]
  KeyGradient(T* result, int64_t dim, float factor, float* scratch, bool one_query_tile)
      : result_(result), dim_(dim), factor_(factor), sums_(scratch), ld_(round_up(dim, 16)) {
    if (dim % kLanes) return;
    at_once_ = Engine::kRoundsResults && one_query_tile;
    if constexpr (sizeof(T) == sizeof(float)) {
      if (result && !at_once_) sums_ = result, ld_ = dim;
    }
  }

  void clear(int64_t row, int64_t n) const {
    if (!result_) return;
    if (at_once_) {
      __builtin_memset(result_ + row * dim_, 0, n * dim_ * sizeof(T));
    } else {
      __builtin_memset(sums_ + row * ld_, 0, n * ld_ * sizeof(float));
    }
  }

  // Rows [row, row + n) from weights [n][m lanes] and queries [m][dim]; those `ahead` rows on come next.
  void add(int64_t row, int64_t n, int64_t m, const Packed* weights, int64_t lanes, const Packed* queries,
           bool accumulate, int64_t ahead) const {
    if (!result_) return;
    if constexpr (Engine::kRoundsResults) {
      if (at_once_) {
        return Engine::lanes_result(n, dim_, m, weights, lanes, queries, factor_, result_ + row * dim_,
                                    lines_of(result_ + (row + ahead) * dim_, dim_));
      }
    }
    Engine::lanes_product(n, dim_, m, weights, lanes, queries, sums_ + row * ld_, ld_, accumulate,
                          lines_of(sums_ + (row + ahead) * ld_, ld_));
  }

  void finish(int64_t rows) const {
    const bool in_place = (const void*)sums_ == (const void*)result_;
    if (!result_ || at_once_ || (in_place && factor_ == 1.0f)) return;
    const vf factor = splat(factor_);
    const float* from = sums_;
    T* to = result_;
    for (int64_t row = 0; row < rows; row++, from += ld_, to += dim_) {
      int64_t d = 0;
      for (; d + kLanes <= dim_; d += kLanes) store_as(to + d, load(from + d) * factor);
      if (d < dim_) store_as(to + d, load(from + d, int(dim_ - d)) * factor, int(dim_ - d));
    }
  }

 private:
  T* result_;
  int64_t dim_;
  float factor_;
  float* sums_;  // [block][ld]
  int64_t ld_;
  bool at_once_ = false;
};

}  // namespace fastfuse::cpu::FASTFUSE_ISA
