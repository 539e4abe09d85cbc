// Products of bfloat16 tiles on AMX. Only for the level `amx`; included elsewhere it defines nothing.
//
//     amx::Session session;                                  once per task: configures this thread's tile registers
//     amx::gemm(m, n, k, A, lda, B, C, ldc, accumulate)      C[m][n] (+)= A[m][k] B[k][n], float accumulation
//
// A is read in place, row by row (any stride, in elements): m rounded up to 16 rows and k rounded up to 32 columns must
// be readable and finite beyond their ends only where B is zero, so pad or copy tails. B is packed by pairs ("VNNI"):
// B[k / 2][ldb][2], k rounded up to 32 with zeros, n rounded up to 16; C has 16-row, 16-column padding.
// A block of 2 x 2 tiles of C stays in registers: per step of k, four tile loads and four products of 16 cycles each.
#pragma once

#if defined(__AMX_BF16__)

#include "cpu/simd.h"

namespace fastfuse::cpu::FASTFUSE_ISA::amx {

constexpr int kRows = 16;   // of A and C
constexpr int kCols = 16;   // of B and C
constexpr int kDepth = 32;  // bfloat16 of one product

struct Session {
  Session() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    __asm__ volatile("" : : "r"(&config) : "memory");  // the intrinsic does not tell that it reads all of it
    _tile_loadconfig(&config);
  }
  ~Session() { _tile_release(); }
  Session(const Session&) = delete;
};

// Tiles: C 0-3 (row-major 2 x 2), A 4-5, B 6-7.
template <int R, int W>
FF_INLINE void block(int64_t k, const bf16* a, int64_t lda, const bf16* b, int64_t ldb, float* c, int64_t ldc,
                     bool accumulate) {
  const int64_t c_bytes = ldc * 4, a_bytes = lda * 2, b_bytes = ldb * 4;
  if (accumulate) {
    _tile_loadd(0, c, c_bytes);
    if constexpr (W == 2) _tile_loadd(1, c + kCols, c_bytes);
    if constexpr (R == 2) _tile_loadd(2, c + kRows * ldc, c_bytes);
    if constexpr (R == 2 && W == 2) _tile_loadd(3, c + kRows * ldc + kCols, c_bytes);
  } else {
    _tile_zero(0);
    if constexpr (W == 2) _tile_zero(1);
    if constexpr (R == 2) _tile_zero(2);
    if constexpr (R == 2 && W == 2) _tile_zero(3);
  }
  for (int64_t p = 0; p < k; p += kDepth, a += kDepth, b += kDepth * ldb) {
    _tile_loadd(4, a, a_bytes);
    _tile_loadd(6, b, b_bytes);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (W == 2) {
      _tile_loadd(7, b + kCols * 2, b_bytes);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (R == 2) {
      _tile_loadd(5, a + kRows * lda, a_bytes);
      _tile_dpbf16ps(2, 5, 6);
    }
    if constexpr (R == 2 && W == 2) _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, c, c_bytes);
  if constexpr (W == 2) _tile_stored(1, c + kCols, c_bytes);
  if constexpr (R == 2) _tile_stored(2, c + kRows * ldc, c_bytes);
  if constexpr (R == 2 && W == 2) _tile_stored(3, c + kRows * ldc + kCols, c_bytes);
}

inline void gemm(int64_t m, int64_t n, int64_t k, const bf16* a, int64_t lda, const bf16* b, int64_t ldb, float* c,
                 int64_t ldc, bool accumulate) {
  __asm__ volatile("" ::: "memory");  // the tile intrinsics do not tell the compiler that they read memory
  for (int64_t i = 0; i < m; i += 2 * kRows) {
    for (int64_t j = 0; j < n; j += 2 * kCols) {
      const bool tall = i + kRows < m, wide = j + kCols < n;
      const bf16 *ai = a + i * lda, *bj = b + j * 2;
      float* cij = c + i * ldc + j;
      if (tall && wide) {
        block<2, 2>(k, ai, lda, bj, ldb, cij, ldc, accumulate);
      } else if (tall) {
        block<2, 1>(k, ai, lda, bj, ldb, cij, ldc, accumulate);
      } else if (wide) {
        block<1, 2>(k, ai, lda, bj, ldb, cij, ldc, accumulate);
      } else {
        block<1, 1>(k, ai, lda, bj, ldb, cij, ldc, accumulate);
      }
    }
  }
}

}  // namespace fastfuse::cpu::FASTFUSE_ISA::amx

#endif
