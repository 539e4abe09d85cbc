// Copies of operand tiles in the layout that the products read: float for gemm.h, bfloat16 for amx.h.
//
//   pack_rows(src, stride, rows, cols, dst, ld)              dst[r][c] = src[r][c] as float; columns padded to ld with
//   0 pack_transposed(src, stride, rows, cols, dst, ld, f)     dst[c][r] = f * src[r][c] as float; r padded to ld with
//   0 transpose(src, src_ld, rows, cols, dst, dst_ld)          float, no padding written: dst[c][r] = src[r][c]
//   transpose(vf (&)[kLanes])                                in registers
//
// T is float, bf16 or f16; stride in elements; ld a multiple of kLanes. Nothing outside [rows][cols] of src is read.
#pragma once

#include "cpu/simd.h"

namespace fastfuse::cpu::FASTFUSE_ISA {

// One butterfly stage: swaps the off-diagonal blocks of size kBlock between rows i and i + kBlock.
template <int kBlock, int... kLane>
FF_INLINE void exchange(vf& a, vf& b, const int (*)[sizeof...(kLane)]) {
  constexpr int n = sizeof...(kLane);
  const vf low = __builtin_shufflevector(a, b, (kLane & kBlock ? n + kLane - kBlock : kLane)...);
  const vf high = __builtin_shufflevector(a, b, (kLane & kBlock ? n + kLane : kLane + kBlock)...);
  a = low;
  b = high;
}

template <int kBlock>
FF_INLINE void exchange(vf& a, vf& b) {
#if defined(__AVX512F__)
  exchange<kBlock, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15>(a, b, nullptr);
#elif defined(__AVX2__)
  exchange<kBlock, 0, 1, 2, 3, 4, 5, 6, 7>(a, b, nullptr);
#else
  exchange<kBlock, 0, 1, 2, 3>(a, b, nullptr);
#endif
}

template <int kBlock = kLanes / 2>
FF_INLINE void transpose(vf (&rows)[kLanes]) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; i++) {
    if (!(i & kBlock)) exchange<kBlock>(rows[i], rows[i + kBlock]);
  }
  if constexpr (kBlock > 1) transpose<kBlock / 2>(rows);
}

// Rows [0, rows) of a kLanes x kLanes block at src, zeros below and to the right of `cols`.
template <class T>
FF_INLINE void load_block(const T* src, int64_t stride, int64_t rows, int64_t cols, vf (&block)[kLanes]) {
  if (rows >= kLanes && cols >= kLanes) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; i++) block[i] = load_as_float(src + i * stride);
  } else {
    const int n = int(min_of<int64_t>(cols, kLanes));
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; i++) block[i] = i < rows ? load_as_float(src + i * stride, n) : vf{};
  }
}

template <class T>
void pack_rows(const T* src, int64_t stride, int64_t rows, int64_t cols, float* dst, int64_t ld) {
  for (int64_t r = 0; r < rows; r++, src += stride, dst += ld) {
    int64_t c = 0;
    for (; c + 4 * kLanes <= cols; c += 4 * kLanes) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) store(dst + c + i * kLanes, load_as_float(src + c + i * kLanes));
    }
    for (; c + kLanes <= cols; c += kLanes) store(dst + c, load_as_float(src + c));
    for (; c < ld; c += kLanes) store(dst + c, c < cols ? load_as_float(src + c, int(cols - c)) : vf{});
  }
}

template <class T>
void pack_transposed(const T* src, int64_t stride, int64_t rows, int64_t cols, float* dst, int64_t ld, float factor) {
  vf block[kLanes];
  const vf f = splat(factor);
  for (int64_t r = 0; r < ld; r += kLanes) {
    for (int64_t c = 0; c < cols; c += kLanes) {
      load_block(src + r * stride + c, stride, rows - r, cols - c, block);
      transpose(block);
      float* to = dst + c * ld + r;
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; i++) {
        if (c + i < cols) store(to + i * ld, block[i] * f);
      }
    }
  }
}

template <class T>
void transpose(const float* src, int64_t src_ld, int64_t rows, int64_t cols, T* dst, int64_t dst_ld) {
  vf block[kLanes];
  for (int64_t r = 0; r < rows; r += kLanes) {
    const int n = int(min_of<int64_t>(rows - r, kLanes));
    for (int64_t c = 0; c < cols; c += kLanes) {
      load_block(src + r * src_ld + c, src_ld, rows - r, cols - c, block);
      transpose(block);
      T* to = dst + c * dst_ld + r;
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; i++) {
        if (c + i >= cols) break;
        if (n == kLanes) {
          store_as(to + i * dst_ld, block[i]);
        } else {
          store_as(to + i * dst_ld, block[i], n);
        }
      }
    }
  }
}

}  // namespace fastfuse::cpu::FASTFUSE_ISA
