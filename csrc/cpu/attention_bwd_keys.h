// Gradients of one block of keys, dK or dV: factor x the sum of a product of each query tile.
//
// They go to the rows of the result at once where one query tile has all queries, are summed in them where these are
// float and whole vectors wide, and else in a float scratch, rounded when the block is done.
#pragma once

#include "cpu/feed.h"
#include "cpu/gemm.h"

namespace fastfuse::cpu::FASTFUSE_ISA {

// Results of so many bytes that are written at once go past the caches: they would not stay there, and a line that is
// written by a plain store is first read from memory.
constexpr int64_t kStreamedBytes = 4 << 20;

template <class Engine>
class KeyGradient {
 public:
  using T = typename Engine::Element;
  using Packed = typename Engine::Packed;

  // result: [block][dim] of all_rows, or null, not wanted; scratch: [block][round_up(dim, 16)]
  KeyGradient(T* result, int64_t all_rows, int64_t dim, float factor, float* scratch, bool one_query_tile)
      : result_(result), dim_(dim), factor_(factor), sums_(scratch), ld_(round_up(dim, 16)) {
    if (dim % kLanes) return;
    at_once_ = Engine::kRoundsResults && one_query_tile;
    constexpr int64_t kLine = 64, kEach = kLine / int64_t(sizeof(T));
    const bool whole_lines = kLanes == kEach || dim % (kPanelVectors * kLanes) == 0;  // one after the other
    streams_ = at_once_ && whole_lines && all_rows * dim * int64_t(sizeof(T)) >= kStreamedBytes &&
               uintptr_t(result) % kLine == 0;
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

  // Rows [row, row + n) will be added to.
  void feed_rows(int64_t row, int64_t n, Feed& feed) const {
    if (!result_ || streams_) return;
    at_once_ ? feed.add(result_ + row * dim_, dim_, dim_, n) : feed.add(sums_ + row * ld_, ld_, ld_, n);
  }

  // Rows [row, row + n) from weights [n][m lanes] and queries [m][dim].
  void add(int64_t row, int64_t n, int64_t m, const Packed* weights, int64_t lanes, const Packed* queries,
           bool accumulate, Feed& feed) const {
    if (!result_) return;
    if constexpr (Engine::kRoundsResults) {
      const auto write = [&](const auto& to) {
        Engine::lanes_result(n, dim_, m, weights, lanes, queries, to, Fed(feed));
      };
      T* const rows = result_ + row * dim_;
      if (at_once_) {
        streams_ ? write(Rounded<T, true>{rows, dim_, factor_}) : write(Rounded<T>{rows, dim_, factor_});
        return;
      }
    }
    Engine::lanes_product(n, dim_, m, weights, lanes, queries, sums_ + row * ld_, ld_, accumulate, Fed(feed));
  }

  void finish(int64_t rows) const {
    const bool in_place = (const void*)sums_ == (const void*)result_;
    if (streams_) stream_end();
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
  bool at_once_ = false, streams_ = false;  // streams_: at once, past the caches
};

}  // namespace fastfuse::cpu::FASTFUSE_ISA
