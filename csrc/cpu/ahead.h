// What a product asks memory for while it computes: `beside` of gemm.h.
#pragma once

#include "cpu/simd.h"

namespace fastfuse::cpu::FASTFUSE_ISA {

// Rows that will be read or written soon, asked for in step with a product, whose arithmetic hides their way from memory:
// in step p line p / 16 of row p % 16, a row of 16 steps being a cache line. A block of rows asks for 16 of each stream:
// those that correspond to its own, and more, which costs nothing.
struct Ahead {
  struct Stream {
    const char* data;
    int64_t stride;  // bytes
  };
  Stream streams[2];

  FF_INLINE void step(int64_t p) const {
    for (const Stream& s : streams) __builtin_prefetch(s.data + p % 16 * s.stride + p / 16 * 64);
  }
  FF_INLINE Ahead skip(int64_t rows, int64_t bytes) const {
    const auto moved = [&](const Stream& s) { return Stream{s.data + rows * s.stride + bytes, s.stride}; };
    return {{moved(streams[0]), moved(streams[1])}};
  }
  FF_INLINE Ahead skip_rows(int64_t rows) const { return skip(rows, 0); }
};

template <class T>
FF_INLINE Ahead::Stream stream_of(const T* data, int64_t stride) {
  return {(const char*)data, stride * int64_t(sizeof(T))};
}

}  // namespace fastfuse::cpu::FASTFUSE_ISA
