// Copies of bfloat16 tiles in the layouts of amx.h, all padded with zeros.
//
//   pack_a(src, stride, rows, cols, dst, ld)               dst[r][c] = src[r][c]                  A operand whose tails
//   need padding pack_a_transposed(src, stride, rows, cols, dst, ld)    dst[c][r] = src[r][c]                  A
//   operand from a transposed source pack_b(src, stride, rows, cols, dst, ld)               dst[r / 2][c][r % 2] =
//   src[r][c]       B operand: contraction over rows pack_b_transposed(src, stride, rows, cols, dst, ld)    dst[c /
//   2][r][c % 2] = src[r][c]       B operand: contraction over columns pair(a, b) (lane of a, lane of b) as bfloat16
//   pairs: one row of a B operand
//
// Contracted sizes are padded to kDepth, others to 16. src is bf16 with any row stride; only [rows][cols] of it is
// read.
#pragma once

#if defined(__AMX_BF16__)

#include "cpu/amx.h"
#include "cpu/pack.h"

namespace fastfuse::cpu::FASTFUSE_ISA::amx {

// Rounds to nearest, ties away from zero: one addition less than ties to even.
FF_INLINE vf pair(vf a, vf b) {
  const __m512i low = _mm512_srli_epi32((__m512i)((vu)a + 0x8000u), 16), high = (__m512i)((vu)b + 0x8000u);
  return (vf)_mm512_mask_blend_epi16(0xaaaaaaaa, low, high);
}

FF_INLINE __m512i load_row(const bf16* src, int64_t cols) {
  if (cols >= 32) return _mm512_loadu_si512(src);
  return cols <= 0 ? _mm512_setzero_si512() : _mm512_maskz_loadu_epi16((1u << cols) - 1, src);
}

inline void pack_a(const bf16* src, int64_t stride, int64_t rows, int64_t cols, bf16* dst, int64_t ld) {
  for (int64_t r = 0; r < round_up(rows, kRows); r++) {
    for (int64_t c = 0; c < ld; c += 32) {
      _mm512_storeu_si512(dst + r * ld + c, load_row(src + r * stride + c, r < rows ? cols - c : 0));
    }
  }
}

inline void pack_b(const bf16* src, int64_t stride, int64_t rows, int64_t cols, bf16* dst, int64_t ld) {
  const __m512i first = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37,
                                         5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  const __m512i second = _mm512_add_epi16(first, _mm512_set1_epi16(16));
  for (int64_t r = 0; r < round_up(rows, kDepth); r += 2, dst += 2 * ld) {
    const bf16 *even = src + r * stride, *odd = even + stride;
    for (int64_t c = 0; c < ld; c += 32) {
      const __m512i a = load_row(even + c, r < rows ? cols - c : 0), b = load_row(odd + c, r + 1 < rows ? cols - c : 0);
      _mm512_storeu_si512(dst + 2 * c, _mm512_permutex2var_epi16(a, first, b));
      if (c + 16 < ld) _mm512_storeu_si512(dst + 2 * c + 32, _mm512_permutex2var_epi16(a, second, b));
    }
  }
}

// Pairs along a row are dwords of the source: a transposition of dwords.
inline void pack_b_transposed(const bf16* src, int64_t stride, int64_t rows, int64_t cols, bf16* dst, int64_t ld) {
  vf block[16];
  for (int64_t r = 0; r < round_up(rows, kCols); r += 16) {
    for (int64_t c = 0; c < round_up(cols, kDepth); c += 32) {
#pragma GCC unroll 16
      for (int i = 0; i < 16; i++) {
        block[i] = (vf)load_row(src + (r + i) * stride + c, r + i < rows ? cols - c : 0);
      }
      transpose(block);
#pragma GCC unroll 16
      for (int i = 0; i < 16; i++) store((float*)(dst + (c / 2 + i) * 2 * ld + 2 * r), block[i]);
    }
  }
}

// Rows are first joined by pairs, dwords (src[r][c], src[r + 1][c]), and these transposed.
inline void pack_a_transposed(const bf16* src, int64_t stride, int64_t rows, int64_t cols, bf16* dst, int64_t ld) {
  vf low[16], high[16];  // unpacking works in 128-bit lanes: columns 8 l + i (low) and 8 l + 4 + i (high), l, i < 4
  for (int64_t r = 0; r < round_up(rows, kDepth); r += 32) {
    for (int64_t c = 0; c < round_up(cols, kRows); c += 32) {
#pragma GCC unroll 16
      for (int i = 0; i < 16; i++) {
        const int64_t row = r + 2 * i;
        const __m512i a = load_row(src + row * stride + c, row < rows ? cols - c : 0);
        const __m512i b = load_row(src + (row + 1) * stride + c, row + 1 < rows ? cols - c : 0);
        low[i] = (vf)_mm512_unpacklo_epi16(a, b);
        high[i] = (vf)_mm512_unpackhi_epi16(a, b);
      }
      transpose(low);
      transpose(high);
      for (int i = 0; i < 16; i++) {
        const int64_t column = c + 8 * (i / 4) + i % 4;
        if (column < round_up(cols, kRows)) store((float*)(dst + column * ld + r), low[i]);
        if (column + 4 < round_up(cols, kRows)) store((float*)(dst + (column + 4) * ld + r), high[i]);
      }
    }
  }
}

}  // namespace fastfuse::cpu::FASTFUSE_ISA::amx

#endif
