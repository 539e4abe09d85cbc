// Attention in bfloat16 by products of pairs (AVX-512-BF16): as FloatEngine, an element of K, of a packed tile or of
// weights being two bfloat16. Included elsewhere it defines nothing.
#pragma once

#if defined(__AVX512BF16__) && !defined(__AMX_BF16__)

#include "cpu/attention_engine.h"
#include "cpu/attention_weights.h"
#include "cpu/gemm.h"

namespace fastfuse::cpu::FASTFUSE_ISA {

struct PairEngine : RowSum, PairedWeights<72> {
  using Element = bf16;
  using Packed = bf16;
  static constexpr bool kPacksKeys = true;
  static constexpr bool kShortExp = true;
  static constexpr bool kRoundsResults = true;
  static constexpr bool kKeepsByLanes = false;
  static constexpr int kLaneGrain = kGrain;
  static constexpr int64_t kKeyGrain = 4;  // of dropout: its numbers come by four keys
  static constexpr int64_t kKeptLimit = kKeptBytes;

  struct Session {};

  static int64_t key_scratch(int64_t d) { return kTileK * round_up(d, 32); }
  static int64_t sum_scratch(int64_t d) { return kTileK * ld(d); }
  static int64_t lanes_size(int64_t d) { return round_up(d, 32) * kTileQ; }
  static int64_t natural_size(int64_t d) { return kTileQ * ld(d); }

  // In place where pairs along a row start at even elements.
  static Operand<bf16> rows_operand(const bf16* src, int64_t stride, int64_t n, int64_t, int64_t d, bf16* scratch) {
    if (d % 2 == 0 && stride % 2 == 0) return {src, stride};
    pack_padded(src, stride, n, d, scratch, round_up(d, 32));
    return {scratch, round_up(d, 32)};
  }
  // [n / 2][ld(d)][2]
  static Operand<bf16> sum_operand(const bf16* src, int64_t stride, int64_t n, int64_t d, bf16* scratch) {
    pack_pairs(src, stride, n, d, scratch, ld(d));
    return {scratch, ld(d)};
  }
  static Operand<bf16> skip_rows(Operand<bf16> a, int64_t n) { return {a.data + n * a.ld, a.ld}; }
  static Operand<bf16> skip_sum(Operand<bf16> a, int64_t n) { return {a.data + n * a.ld, a.ld}; }

  static void pack_lanes(const bf16* src, int64_t stride, int64_t m, int64_t d, bf16* dst, int64_t lanes) {
    pack_pairs_transposed(src, stride, m, d, dst, lanes);
  }
  static void pack_natural(const bf16* src, int64_t stride, int64_t m, int64_t d, bf16* dst) {
    pack_pairs(src, stride, m, d, dst, ld(d));
  }

  template <class Beside>
  static void rows_product(int64_t n, int64_t width, int64_t d, Operand<bf16> a, const bf16* b, float* c,
                           const Beside& beside) {
    const int64_t lanes = round_up(width, kLanes);
    gemm<false, PairTerm, kGrain>(n, width, ceil_div(d, 2), as_pairs(a.data), a.ld / 2, as_pairs(b), lanes, c, lanes,
                                  false, beside);
  }
  template <class Beside = Alone>
  static void scores_product(int64_t n, int64_t width, int64_t d, Operand<bf16> a, const bf16* b, float* c, float*,
                             const Beside& beside = {}) {
    rows_product(n, width, d, a, b, c, beside);
  }
  template <class Beside>
  static void sum_product(int64_t rows, int64_t lanes, int64_t d, int64_t n, const bf16* weights, Operand<bf16> b,
                          float* sum, bool accumulate, const Beside& beside) {
    gemm<true, PairTerm>(rows, d, ceil_div(n, 2), as_pairs(weights), lanes, as_pairs(b.data), b.ld, sum, ld(d),
                         accumulate, beside);
  }
  template <class Beside>
  static void lanes_product(int64_t n, int64_t d, int64_t m, const bf16* a, int64_t lanes, const bf16* b, float* c,
                            int64_t ldc, bool accumulate, const Beside& beside) {
    gemm<false, PairTerm>(n, d, ceil_div(m, 2), as_pairs(a), weights_ld(lanes) / 2, as_pairs(b), ld(d), c, ldc,
                          accumulate, beside);
  }
  template <class To, class Beside>
  static void lanes_result(int64_t n, int64_t d, int64_t m, const bf16* a, int64_t lanes, const bf16* b, To to,
                           const Beside& beside) {
    gemm_to<false, PairTerm>(n, d, ceil_div(m, 2), as_pairs(a), weights_ld(lanes) / 2, as_pairs(b), ld(d), to, beside);
  }
};

}  // namespace fastfuse::cpu::FASTFUSE_ISA

#endif
