// Small float products whose operands are already in cache: the register-blocked core of every kernel.
//
//     gemm<kTransA>(m, n, k, A, lda, B, ldb, C, ldc, accumulate):   C[m][n] (+)= A[m][k] B[k][n]
//     gemm<kTransA, PairTerm>(...)                                  the same of bfloat16 pairs, where AVX-512-BF16 is:
//                                                                   an element of A and B is a pair along k, k counts
//                                                                   pairs, products add up in float
//
// Vector lanes run along n. B and C rows are padded by their owner to whole vectors (n is rounded up to kLanes; what
// lies in the padding of B only reaches the padding of C). A is read element by element and broadcast, so it needs no
// packing, no alignment and no padding: row i, column p is A[i * lda + p], or A[p * lda + i] with kTransA. Any m, n, k
// >= 1.
//
// A block of R rows x W vectors of C stays in registers while p runs: per p it takes W loads, R broadcasts and R * W
// FMAs. 24 of 32 registers (12 of 16) accumulate, above the 8 that two FMA ports of latency 4 need. What C held is
// added last, so that a long sum taken in several calls is a sum of short ones, with their smaller rounding error.
//
//     gemm_precise(m, n, k, A, lda, B, ldb, C, rest, ldc):   C + rest = A B, summed in double, as two floats
#pragma once

#include "cpu/ahead.h"
#include "cpu/simd.h"

namespace fastfuse::cpu::FASTFUSE_ISA {

constexpr int kPanelVectors = kVectorRegisters == 32 ? 4 : 2;
constexpr int kAccumulators = kVectorRegisters == 32 ? 24 : 12;

// One term of a sum.
struct FloatTerm {
  FF_INLINE static vf add(vf a, vf b, vf sum) { return fma(a, b, sum); }
};
#if defined(__AVX512BF16__)
struct PairTerm {
  FF_INLINE static vf add(vf a, vf b, vf sum) { return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b); }
};
FF_INLINE const float* as_pairs(const bf16* p) { return reinterpret_cast<const float*>(p); }
#endif

template <class Term, class Beside, int R, int W, bool kTransA>
void gemm_block(int64_t k, const float* __restrict a, int64_t lda, const float* __restrict b, int64_t ldb,
                float* __restrict c, int64_t ldc, bool accumulate, Beside beside) {
  vf acc[R][W];
#pragma GCC unroll 24
  for (int i = 0; i < R; i++) {
#pragma GCC unroll 4
    for (int j = 0; j < W; j++) acc[i][j] = vf{};
  }
  for (int64_t p = 0; p < k; p++) {
    vf row[W];
    beside.step(p);
#pragma GCC unroll 4
    for (int j = 0; j < W; j++) row[j] = load(b + p * ldb + j * kLanes);
#pragma GCC unroll 24
    for (int i = 0; i < R; i++) {
      const vf x = splat(kTransA ? a[p * lda + i] : a[i * lda + p]);
#pragma GCC unroll 4
      for (int j = 0; j < W; j++) acc[i][j] = Term::add(x, row[j], acc[i][j]);
    }
  }
#pragma GCC unroll 24
  for (int i = 0; i < R; i++) {
#pragma GCC unroll 4
    for (int j = 0; j < W; j++) {
      float* at = c + i * ldc + j * kLanes;
      store(at, accumulate ? load(at) + acc[i][j] : acc[i][j]);
    }
  }
}

template <class Beside>
using GemmBlock = void (*)(int64_t, const float*, int64_t, const float*, int64_t, float*, int64_t, bool, Beside);

template <class Term, class Beside, int R, int W, bool kTransA>
FF_INLINE GemmBlock<Beside> gemm_block_of(int rows) {
  if constexpr (R == 1) {
    return gemm_block<Term, Beside, 1, W, kTransA>;
  } else {
    return rows == R ? gemm_block<Term, Beside, R, W, kTransA> : gemm_block_of<Term, Beside, R - 1, W, kTransA>(rows);
  }
}

// All m rows of one panel of W vectors.
template <class Term, int W, bool kTransA, class Beside>
void gemm_panel(int64_t m, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc,
                bool accumulate, Beside beside) {
  constexpr int R = kAccumulators / W > 16 ? 16 : kAccumulators / W;
  const int64_t blocks = ceil_div(m, R), each = m / blocks, longer = m % blocks;  // even blocks: no thin last one
  int64_t i = 0;
  for (int64_t block = 0; block < blocks; block++) {
    const int rows = int(each + (block < longer));
    gemm_block_of<Term, Beside, R, W, kTransA>(rows)(k, a + (kTransA ? i : i * lda), lda, b, ldb, c + i * ldc, ldc,
                                                     accumulate, beside.skip_rows(i));
    i += rows;
  }
}

template <bool kTransA, class Term = FloatTerm, class Beside = Alone>
void gemm(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
          int64_t ldc, bool accumulate, Beside beside = {}) {
  const int64_t vectors = ceil_div(n, kLanes), panels = ceil_div(vectors, kPanelVectors);
  int64_t j = 0;
  for (int64_t panel = 0; panel < panels; panel++) {
    const int w = int(vectors / panels + (panel < vectors % panels));  // 5 = 3 + 2, not 4 + 1
    const float* bj = b + j * kLanes;
    float* cj = c + j * kLanes;
    switch (w) {
      case 1:
        gemm_panel<Term, 1, kTransA>(m, k, a, lda, bj, ldb, cj, ldc, accumulate, beside);
        break;
      case 2:
        gemm_panel<Term, 2, kTransA>(m, k, a, lda, bj, ldb, cj, ldc, accumulate, beside);
        break;
      case 3:
        if constexpr (kPanelVectors > 2)
          gemm_panel<Term, 3, kTransA>(m, k, a, lda, bj, ldb, cj, ldc, accumulate, beside);
        break;
      case 4:
        if constexpr (kPanelVectors > 2)
          gemm_panel<Term, 4, kTransA>(m, k, a, lda, bj, ldb, cj, ldc, accumulate, beside);
        break;
    }
    j += w;
  }
}

constexpr int kHalf = kLanes / 2;
typedef double vd __attribute__((vector_size(kHalf * 8)));
typedef float vf_half __attribute__((vector_size(kHalf * 4)));

inline void gemm_precise(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb,
                         float* c, float* rest, int64_t ldc) {
  constexpr int R = 4;
  for (int64_t i = 0; i < m; i += R) {
    const float* rows[R];
    for (int r = 0; r < R; r++) rows[r] = a + min_of(i + r, m - 1) * lda;
    for (int64_t j = 0; j < round_up(n, kLanes); j += kHalf) {
      vd acc[R] = {};
      for (int64_t p = 0; p < k; p++) {
        vf_half x;
        __builtin_memcpy(&x, b + p * ldb + j, sizeof x);
        const vd row = __builtin_convertvector(x, vd);
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) acc[r] += row * double(rows[r][p]);
      }
      for (int r = 0; r < R && i + r < m; r++) {
        const vf_half high = __builtin_convertvector(acc[r], vf_half);
        const vf_half low = __builtin_convertvector(acc[r] - __builtin_convertvector(high, vd), vf_half);
        __builtin_memcpy(c + (i + r) * ldc + j, &high, sizeof high);
        __builtin_memcpy(rest + (i + r) * ldc + j, &low, sizeof low);
      }
    }
  }
}

}  // namespace fastfuse::cpu::FASTFUSE_ISA
