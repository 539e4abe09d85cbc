// Small float products whose operands are already in cache: the register-blocked core of every kernel.
//
//     gemm<kTransA>(m, n, k, A, lda, B, ldb, C, ldc, accumulate):   C[m][n] (+)= A[m][k] B[k][n]
//     gemm<kTransA, PairTerm>(...)                                  the same of bfloat16 pairs, where AVX-512-BF16 is:
//                                                                   an element of A and B is a pair along k, k counts
//                                                                   pairs, products add up in float
//
// Vector lanes run along n. B and C rows are padded by their owner to whole vectors (n is rounded up to kColumns: kLanes,
// or kGrain of simd_vector.h; what lies in the padding of B only reaches the padding of C). A is read element by element
// and broadcast, so it needs no packing, no alignment and no padding: row i, column p is A[i * lda + p], or
// A[p * lda + i] with kTransA. Any m, n, k >= 1.
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

constexpr int kPanelVectors = kVectorRegisters == 32 ? 4 : 3;
constexpr int kAccumulators = kVectorRegisters == 32 ? 24 : 12;

// Terms of a float sum in one chain where large sums follow, logits: the rounding of a long one would show in softmax,
// which multiplies it. Short vectors, whose blocks are soon over, go on to twice as many.
constexpr int64_t kChain = kVectorRegisters == 32 ? 64 : 128;

// One term of a sum; kFromMemory: its instruction broadcasts a number in memory itself.
struct FloatTerm {
  static constexpr bool kFromMemory = true;
  template <class V>
  FF_INLINE static V add(V a, V b, V sum) {
#if defined(__AVX2__) && !defined(__AVX512F__)
    // With no register to spare the compiler would copy sums to and fro between the unrolled steps.
    asm("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
    return sum;
#else
    return fma(a, b, sum);
#endif
  }
};
#if defined(__AVX512BF16__)
struct PairTerm {
  static constexpr bool kFromMemory = false;
  FF_INLINE static vf add(vf a, vf b, vf sum) { return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b); }
  FF_INLINE static vf_half add(vf_half a, vf_half b, vf_half sum) {
    return (vf_half)_mm256_dpbf16_ps((__m256)sum, (__m256bh)a, (__m256bh)b);
  }
};
FF_INLINE const float* as_pairs(const bf16* p) { return reinterpret_cast<const float*>(p); }
#endif

// Where a product goes: to sums that it starts or adds to, or multiplied and rounded to rows of a result, past the caches
// where kStreamed.
struct Sums {
  float* c;
  int64_t ld;
  bool accumulate;
  FF_INLINE Sums skip(int64_t rows, int64_t columns) const { return {c + rows * ld + columns, ld, accumulate}; }
  template <class V>
  FF_INLINE void put(int64_t row, int64_t column, V sum) const {
    float* at = c + row * ld + column;
    store(at, accumulate ? load_as<V>(at) + sum : sum);
  }
};
template <class T, bool kStreamed = false>
struct Rounded {
  T* c;
  int64_t ld;
  float factor;
  FF_INLINE Rounded skip(int64_t rows, int64_t columns) const { return {c + rows * ld + columns, ld, factor}; }
  FF_INLINE void put(int64_t row, int64_t column, vf sum) const {
    T* at = c + row * ld + column;
    kStreamed ? stream_as(at, sum * splat(factor)) : store_as(at, sum * splat(factor));
  }
};

// The elements of A in one step p: row i is A[i * lda + p], or A[p * lda + i] with kTransA. Two addresses and multiples of
// lda reach 12 rows; the compiler, if it saw through them, would keep an address for each and spill the most.
template <bool kTransA, int R>
struct LeftColumn {
  const float *first, *seventh;
  int64_t lda, lda3, lda5;

  LeftColumn(const float* a, int64_t ld) : first(a), seventh(a + 6 * ld), lda(ld), lda3(3 * ld), lda5(5 * ld) {
    asm("" : "+r"(lda), "+r"(lda3), "+r"(lda5));
  }
  FF_INLINE float row(int i) const {
    if (kTransA) return first[i];
    const float* at = i < 6 ? first : seventh;
    if (i >= 12) at += 6 * lda;
    const int64_t offsets[6] = {0, lda, 2 * lda, lda3, 4 * lda, lda5};
    return at[offsets[i % 6]];
  }
  FF_INLINE void next() {
    first += kTransA ? lda : 1;
    asm("" : "+r"(first));
    if (!kTransA && R > 6) {
      seventh += 1;
      asm("" : "+r"(seventh));
    }
  }
};

// `blocks` times R rows of C, W whole vectors and where kTail half of one more.
template <class Term, class Beside, class To, int R, int W, bool kTail, bool kTransA>
void gemm_blocks(int64_t blocks, int64_t k, const float* __restrict a, int64_t lda, const float* __restrict panel,
                 int64_t ldb, To to, Beside beside) {
  for (; blocks > 0; blocks--) {
    vf acc[R][W];
    vf_half tail[R];
#pragma GCC unroll 24
    for (int i = 0; i < R; i++) {
      tail[i] = vf_half{};
#pragma GCC unroll 4
      for (int j = 0; j < W; j++) acc[i][j] = vf{};
    }
    LeftColumn<kTransA, R> left(a, lda);
    const float* b = panel;
    auto meanwhile = beside.start();
    const auto step = [&]() FF_LAMBDA {
      vf row[W];
      vf_half last{};
#pragma GCC unroll 4
      for (int j = 0; j < W; j++) row[j] = load(b + j * kLanes);
      if (kTail) last = load_as<vf_half>(b + W * kLanes);
#pragma GCC unroll 24
      for (int i = 0; i < R; i++) {
        const vf x = splat(left.row(i));
#pragma GCC unroll 4
        for (int j = 0; j < W; j++) acc[i][j] = Term::add(x, row[j], acc[i][j]);
        if (kTail && !Term::kFromMemory) tail[i] = Term::add(low_half(x), last, tail[i]);
      }
#pragma GCC unroll 24
      for (int i = 0; kTail && Term::kFromMemory && i < R; i++) {
        tail[i] = Term::add(splat_as<vf_half>(left.row(i)), last, tail[i]);
      }
      left.next();
      b += ldb;
    };
    int64_t p = 0;
    for (; p + kUnroll <= k; p += kUnroll) {
      meanwhile.step(p / kUnroll);
#pragma GCC unroll 4
      for (int u = 0; u < kUnroll; u++) step();
    }
    for (; p < k; p++) step();
    beside.stop(meanwhile);
#pragma GCC unroll 24
    for (int i = 0; i < R; i++) {
#pragma GCC unroll 4
      for (int j = 0; j < W; j++) to.put(i, j * kLanes, acc[i][j]);
      if constexpr (kTail) to.put(i, W * kLanes, tail[i]);
    }
    a += kTransA ? R : R * lda;
    to = to.skip(R, 0);
    beside = beside.skip_rows(R);
  }
}

template <class Beside, class To>
using GemmBlocks = void (*)(int64_t, int64_t, const float*, int64_t, const float*, int64_t, To, Beside);

template <class Term, class Beside, class To, int R, int W, bool kTail, bool kTransA>
FF_INLINE GemmBlocks<Beside, To> gemm_blocks_of(int64_t rows) {
  if constexpr (R == 1) {
    return gemm_blocks<Term, Beside, To, 1, W, kTail, kTransA>;
  } else {
    return rows == R ? gemm_blocks<Term, Beside, To, R, W, kTail, kTransA>
                     : gemm_blocks_of<Term, Beside, To, R - 1, W, kTail, kTransA>(rows);
  }
}

// All m rows of one panel of W vectors and where kTail a half.
template <class Term, int W, bool kTail, bool kTransA, class To, class Beside>
void gemm_panel(int64_t m, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, To to, Beside beside) {
  constexpr int kEach = kAccumulators / (W + kTail), R = kEach > 16 ? 16 : kEach;
  const int64_t blocks = ceil_div(m, R), each = m / blocks, longer = m % blocks;  // even blocks: no thin last one
  const auto run = [&](int64_t first, int64_t rows, int64_t count) FF_LAMBDA {
    gemm_blocks_of<Term, Beside, To, R, W, kTail, kTransA>(rows)(count, k, a + (kTransA ? first : first * lda), lda, b,
                                                                 ldb, to.skip(first, 0), beside.skip_rows(first));
  };
  if (longer) run(0, each + 1, longer);
  run(longer * (each + 1), each, blocks - longer);
}

// body(first, count) of each panel of so many vectors; as even as can be: 5 = 3 + 2, not 4 + 1.
template <class Body>
FF_INLINE void for_panels(int64_t vectors, const Body& body) {
  const int64_t panels = ceil_div(vectors, kPanelVectors), each = vectors / panels, longer = vectors % panels;
  for (int64_t panel = 0, first = 0; panel < panels; panel++) {
    const int64_t count = each + (panel < longer);
    body(first, count);
    first += count;
  }
}

// n is rounded up to kColumns: kLanes or kGrain.
template <bool kTransA, class Term = FloatTerm, int kColumns = kLanes, class To, class Beside = Alone>
void gemm_to(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, To to,
             Beside beside = {}) {
  const int64_t pieces = ceil_div(n, kColumns), whole = pieces * kColumns / kLanes;
  const bool half = pieces * kColumns % kLanes != 0;
  const int64_t vectors = whole + half;
  for_panels(vectors, [&](int64_t first, int64_t count) {
    const int64_t j = first * kLanes;
    const float* bj = b + j;
    const To to_j = to.skip(0, j);
    const Beside beside_j = beside.skip(0, j * int64_t(sizeof(float)));
    const auto columns = [&](auto width) {
      constexpr int W = decltype(width)::value;
      if constexpr (W <= kPanelVectors) {
        if constexpr (kColumns < kLanes) {
          if (half && first + count == vectors)
            return gemm_panel<Term, W - 1, true, kTransA>(m, k, a, lda, bj, ldb, to_j, beside_j);
        }
        gemm_panel<Term, W, false, kTransA>(m, k, a, lda, bj, ldb, to_j, beside_j);
      }
    };
    switch (count) {
      case 1:
        columns(Constant<1>{});
        break;
      case 2:
        columns(Constant<2>{});
        break;
      case 3:
        columns(Constant<3>{});
        break;
      case 4:
        columns(Constant<4>{});
        break;
    }
  });
}

template <bool kTransA, class Term = FloatTerm, int kColumns = kLanes, class Beside = Alone>
void gemm(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
          int64_t ldc, bool accumulate, Beside beside = {}) {
  gemm_to<kTransA, Term, kColumns>(m, n, k, a, lda, b, ldb, Sums{c, ldc, accumulate}, beside);
}

inline void gemm_precise(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb,
                         float* c, float* rest, int64_t ldc) {
  constexpr int R = 4;
  for (int64_t i = 0; i < m; i += R) {
    const float* rows[R];
    for (int r = 0; r < R; r++) rows[r] = a + min_of(i + r, m - 1) * lda;
    for (int64_t j = 0; j < round_up(n, kLanes); j += kHalf) {
      vd acc[R] = {};
      for (int64_t p = 0; p < k; p++) {
        const vd row = widen(load_as<vf_of_vd>(b + p * ldb + j));
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) acc[r] += row * double(rows[r][p]);
      }
      for (int r = 0; r < R && i + r < m; r++) {
        const vf_of_vd high = __builtin_convertvector(acc[r], vf_of_vd);
        const vf_of_vd low = __builtin_convertvector(acc[r] - widen(high), vf_of_vd);
        __builtin_memcpy(c + (i + r) * ldc + j, &high, sizeof high);
        __builtin_memcpy(rest + (i + r) * ldc + j, &low, sizeof low);
      }
    }
  }
}

}  // namespace fastfuse::cpu::FASTFUSE_ISA
