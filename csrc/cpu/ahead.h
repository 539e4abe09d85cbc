// What a product of gemm.h does beside its arithmetic every kUnroll steps of a block of rows: nothing, Alone; or it asks
// memory for rows in step with its own, Ahead, or for what a queue has next, Fed of feed.h.
//
// A block of rows steps what start() gives it, p = 0, 1, ..., and hands it back to stop().
#pragma once

#include "cpu/simd.h"

namespace fastfuse::cpu::FASTFUSE_ISA {

// With 16 registers a step of a product is over in six cycles: too few for a request each.
constexpr int kUnroll = kVectorRegisters == 32 ? 1 : 4;

struct Alone {
  FF_INLINE Alone start() const { return {}; }
  FF_INLINE void stop(Alone) const {}
  FF_INLINE void step(int64_t) const {}
  FF_INLINE Alone skip(int64_t, int64_t) const { return {}; }
  FF_INLINE Alone skip_rows(int64_t) const { return {}; }
};

// Rows that will be read or written soon, asked for in step with a product, whose arithmetic hides their way from memory:
// line p / kRows of row p % kRows, 16 steps of the product being a cache line. A block of rows asks for kRows of each
// stream: those that correspond to its own, or more, which costs nothing.
struct Stream {
  const char* data;
  int64_t stride;  // bytes
};

template <int N>
struct Ahead {
  Stream streams[N];

  FF_INLINE Ahead start() const { return *this; }
  FF_INLINE void stop(const Ahead&) const {}
  FF_INLINE void step(int64_t p) const {
    constexpr int kRows = 16 / kUnroll;
    for (const Stream& s : streams) __builtin_prefetch(s.data + p % kRows * s.stride + p / kRows * 64);
  }
  FF_INLINE Ahead skip(int64_t rows, int64_t bytes) const {
    Ahead moved = *this;
    for (Stream& s : moved.streams) s.data += rows * s.stride + bytes;
    return moved;
  }
  FF_INLINE Ahead skip_rows(int64_t rows) const { return skip(rows, 0); }
};

template <class T>
FF_INLINE Stream stream_of(const T* data, int64_t stride) {
  return {(const char*)data, stride * int64_t(sizeof(T))};
}

}  // namespace fastfuse::cpu::FASTFUSE_ISA
