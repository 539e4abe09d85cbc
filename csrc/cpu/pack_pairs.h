// Copies of bfloat16 tiles in the layouts of the paired products: PairTerm of gemm.h, and amx.h. Only where AVX-512-BF16
// is; included elsewhere it defines nothing.
//
//   pack_padded(src, stride, rows, cols, dst, ld)             dst[r][c] = src[r][c]
//   pack_pairs(src, stride, rows, cols, dst, ld)              dst[r / 2][c][r % 2] = src[r][c]     sum over rows
//   pack_pairs_transposed(src, stride, rows, cols, dst, ld)   dst[c / 2][r][c % 2] = src[r][c]     sum over columns
//   pair(a, b)                                                lanes (a, b) as one row of such pairs
//   low_words(a, b)  high_words(a, b)                         what such pairs hold, of one of the two rows
//
// Padded with zeros: rows and columns to 16, summed rows to kPairDepth, summed columns to 32. src has any row stride; only [rows][cols] of it is read.
#pragma once

#if defined(__AVX512BF16__)

#include "cpu/pack.h"

namespace fastfuse::cpu::FASTFUSE_ISA {

#if defined(__AMX_BF16__)
constexpr int kPairDepth = 32;  // of one product of tiles
constexpr int kPairRows = 16;
#else
constexpr int kPairDepth = 2;
constexpr int kPairRows = 1;
#endif

// Rounds to nearest, ties away from zero: one addition less than ties to even.
FF_INLINE vf pair(vf a, vf b) {
  const __m512i low = _mm512_srli_epi32((__m512i)((vu)a + 0x8000u), 16), high = (__m512i)((vu)b + 0x8000u);
  return (vf)_mm512_mask_blend_epi16(0xaaaaaaaa, low, high);
}
FF_INLINE vf_half pair(vf_half a, vf_half b) {
  const __m256i half = _mm256_set1_epi32(0x8000), low = _mm256_srli_epi32(_mm256_add_epi32((__m256i)a, half), 16);
  return (vf_half)_mm256_blend_epi16(low, _mm256_add_epi32((__m256i)b, half), 0xaa);
}

// The 16 lanes of a and the 16 of b, their low or their high halves.
FF_INLINE __m512i low_words(__m512i a, __m512i b) {
  return _mm512_permutex2var_epi16(a,
                                   _mm512_set_epi16(62, 60, 58, 56, 54, 52, 50, 48, 46, 44, 42, 40, 38, 36, 34, 32, 30,
                                                    28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0),
                                   b);
}
FF_INLINE __m512i high_words(__m512i a, __m512i b) {
  return _mm512_permutex2var_epi16(a,
                                   _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31,
                                                    29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1),
                                   b);
}

FF_INLINE __m512i load_row(const bf16* src, int64_t cols) {
  if (cols >= 32) return _mm512_loadu_si512(src);
  return cols <= 0 ? _mm512_setzero_si512() : _mm512_maskz_loadu_epi16((1u << cols) - 1, src);
}

inline void pack_padded(const bf16* src, int64_t stride, int64_t rows, int64_t cols, bf16* dst, int64_t ld) {
  for (int64_t r = 0; r < round_up(rows, 16); r++) {
    for (int64_t c = 0; c < ld; c += 32) {
      _mm512_storeu_si512(dst + r * ld + c, load_row(src + r * stride + c, r < rows ? cols - c : 0));
    }
  }
}

inline void pack_pairs(const bf16* src, int64_t stride, int64_t rows, int64_t cols, bf16* dst, int64_t ld) {
  const __m512i first = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37,
                                         5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  const __m512i second = _mm512_add_epi16(first, _mm512_set1_epi16(16));
  for (int64_t r = 0; r < round_up(rows, kPairDepth); r += 2, dst += 2 * ld) {
    const bf16 *even = src + r * stride, *odd = even + stride;
    for (int64_t c = 0; c < ld; c += 32) {
      const __m512i a = load_row(even + c, r < rows ? cols - c : 0), b = load_row(odd + c, r + 1 < rows ? cols - c : 0);
      _mm512_storeu_si512(dst + 2 * c, _mm512_permutex2var_epi16(a, first, b));
      if (c + 16 < ld) _mm512_storeu_si512(dst + 2 * c + 32, _mm512_permutex2var_epi16(a, second, b));
    }
  }
}

// Pairs along a row are dwords of the source: a transposition of dwords.
inline void pack_pairs_transposed(const bf16* src, int64_t stride, int64_t rows, int64_t cols, bf16* dst, int64_t ld) {
  vf block[16];
  for (int64_t r = 0; r < round_up(rows, 16); r += 16) {
    for (int64_t c = 0; c < round_up(cols, 32); c += 32) {
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

}  // namespace fastfuse::cpu::FASTFUSE_ISA

#endif
