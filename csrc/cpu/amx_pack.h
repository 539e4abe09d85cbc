// A left operand of amx.h from a transposed source, padded with zeros:
//
//   pack_a_transposed(src, stride, rows, cols, dst, ld)    dst[c][r] = src[r][c], r padded to kDepth and c to kRows
//
// src is bf16 with any row stride; only [rows][cols] of it is read.
#pragma once

#if defined(__AMX_BF16__)

#include "cpu/amx.h"
#include "cpu/pack_pairs.h"

namespace fastfuse::cpu::FASTFUSE_ISA::amx {

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
