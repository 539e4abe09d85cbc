// Small float products whose operands are already in cache: the register-blocked core of every kernel.
//
//     gemm<kTransA>(m, n, k, A, lda, B, ldb, C, ldc, accumulate):   C[m][n] (+)= A[m][k] B[k][n]
//
// Vector lanes run along n. B and C rows are padded by their owner to whole vectors (n is rounded up to kLanes; what
// lies in the padding of B only reaches the padding of C). A is read element by element and broadcast, so it needs no
// packing, no alignment and no padding: row i, column p is A[i * lda + p], or A[p * lda + i] with kTransA. Any m, n, k
// >= 1.
//
// A block of R rows x W vectors of C stays in registers while p runs: per p it takes W loads, R broadcasts and R * W
// FMAs. R * W is at most 24 of 32 registers (12 of 16): above the 8 that two FMA ports of latency 4 need.
#pragma once

#include "cpu/simd.h"

namespace fastfuse::cpu::FASTFUSE_ISA {

constexpr int kPanelVectors = kVectorRegisters == 32 ? 4 : 2;
constexpr int max_block_rows(int w) { return (kVectorRegisters == 32 ? 24 : 12) / w; }

template <int R, int W, bool kTransA>
void gemm_block(int64_t k, const float* __restrict a, int64_t lda, const float* __restrict b, int64_t ldb,
                float* __restrict c, int64_t ldc, bool accumulate) {
  vf acc[R][W];
#pragma GCC unroll 24
  for (int i = 0; i < R; i++) {
#pragma GCC unroll 4
    for (int j = 0; j < W; j++) acc[i][j] = accumulate ? load(c + i * ldc + j * kLanes) : vf{};
  }
  for (int64_t p = 0; p < k; p++) {
    vf row[W];
#pragma GCC unroll 4
    for (int j = 0; j < W; j++) row[j] = load(b + p * ldb + j * kLanes);
#pragma GCC unroll 24
    for (int i = 0; i < R; i++) {
      const vf x = splat(kTransA ? a[p * lda + i] : a[i * lda + p]);
#pragma GCC unroll 4
      for (int j = 0; j < W; j++) acc[i][j] = fma(x, row[j], acc[i][j]);
    }
  }
#pragma GCC unroll 24
  for (int i = 0; i < R; i++) {
#pragma GCC unroll 4
    for (int j = 0; j < W; j++) store(c + i * ldc + j * kLanes, acc[i][j]);
  }
}

using GemmBlock = void (*)(int64_t, const float*, int64_t, const float*, int64_t, float*, int64_t, bool);

template <int R, int W, bool kTransA>
FF_INLINE GemmBlock gemm_block_of(int rows) {
  if constexpr (R == 1) {
    return gemm_block<1, W, kTransA>;
  } else {
    return rows == R ? gemm_block<R, W, kTransA> : gemm_block_of<R - 1, W, kTransA>(rows);
  }
}

// All m rows of one panel of W vectors.
template <int W, bool kTransA>
void gemm_panel(int64_t m, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc,
                bool accumulate) {
  constexpr int R = max_block_rows(W) > 16 ? 16 : max_block_rows(W);
  const int64_t blocks = ceil_div(m, R), each = m / blocks, longer = m % blocks;  // even blocks: no thin last one
  int64_t i = 0;
  for (int64_t block = 0; block < blocks; block++) {
    const int rows = int(each + (block < longer));
    gemm_block_of<R, W, kTransA>(rows)(k, a + (kTransA ? i : i * lda), lda, b, ldb, c + i * ldc, ldc, accumulate);
    i += rows;
  }
}

template <bool kTransA>
void gemm(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
          int64_t ldc, bool accumulate) {
  const int64_t vectors = ceil_div(n, kLanes), panels = ceil_div(vectors, kPanelVectors);
  int64_t j = 0;
  for (int64_t panel = 0; panel < panels; panel++) {
    const int w = int(vectors / panels + (panel < vectors % panels));  // 5 = 3 + 2, not 4 + 1
    const float* bj = b + j * kLanes;
    float* cj = c + j * kLanes;
    switch (w) {
      case 1:
        gemm_panel<1, kTransA>(m, k, a, lda, bj, ldb, cj, ldc, accumulate);
        break;
      case 2:
        gemm_panel<2, kTransA>(m, k, a, lda, bj, ldb, cj, ldc, accumulate);
        break;
      case 3:
        if constexpr (kPanelVectors > 2) gemm_panel<3, kTransA>(m, k, a, lda, bj, ldb, cj, ldc, accumulate);
        break;
      case 4:
        if constexpr (kPanelVectors > 2) gemm_panel<4, kTransA>(m, k, a, lda, bj, ldb, cj, ldc, accumulate);
        break;
    }
    j += w;
  }
}

}  // namespace fastfuse::cpu::FASTFUSE_ISA
