// Gradients of the rows of one block of keys, dK or dV: summed in place in the result where it is float and whole vectors
// wide, else in a float scratch and converted when the block is done.
#pragma once

#include "cpu/simd.h"

namespace fastfuse::cpu::FASTFUSE_ISA {

struct KeyGradient {
  float* data;  // [block][ld]
  int64_t ld;
  KeyGradient skip_rows(int64_t n) const { return {data + n * ld, ld}; }
  void clear(int64_t from, int64_t rows) const { __builtin_memset(data + from * ld, 0, rows * ld * sizeof(float)); }
};

// Of the block from row `row` of the result [rows][dim]; scratch [block][round_up(dim, 16)]
template <class T>
KeyGradient gradient_block(void* result, int64_t row, int64_t dim, float* scratch) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (result && dim % kLanes == 0) return {static_cast<float*>(result) + row * dim, dim};
  }
  return {scratch, round_up(dim, 16)};
}

template <class T>
void write_keys(const KeyGradient& from, int64_t rows, int64_t dim, float factor, T* to) {
  if ((const void*)from.data == (const void*)to && factor == 1.0f) return;
  const vf f = splat(factor);
  for (int64_t row = 0; row < rows; row++, to += dim) {
    const float* at = from.data + row * from.ld;
    int64_t d = 0;
    for (; d + kLanes <= dim; d += kLanes) store_as(to + d, load(at + d) * f);
    if (d < dim) store_as(to + d, load(at + d, int(dim - d)) * f, int(dim - d));
  }
}

}  // namespace fastfuse::cpu::FASTFUSE_ISA
