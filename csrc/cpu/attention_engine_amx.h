// Attention in bfloat16 on AMX: products of tiles, float32 accumulation. Included elsewhere it defines nothing.
#pragma once

#if defined(__AMX_BF16__)

#include "cpu/amx_pack.h"
#include "cpu/attention_engine.h"
#include "cpu/attention_weights.h"

namespace fastfuse::cpu::FASTFUSE_ISA {

struct AmxEngine : PairedWeights<128> {
  using Element = bf16;
  using Packed = bf16;
  static constexpr bool kPacksKeys = true;
  static constexpr bool kShortExp = true;
  static constexpr bool kRoundsResults = false;
  static constexpr bool kKeepsByLanes = false;
  static constexpr int64_t kKeyGrain = kTileK;
  static constexpr int kLaneGrain = kLanes;
  static constexpr int64_t kKeptLimit = 0;  // the product is faster than its weights' way through memory

  using Session = amx::Session;

  static int64_t key_scratch(int64_t d) { return kTileK * round_up(d, amx::kDepth); }
  static int64_t sum_scratch(int64_t d) { return kTileK * round_up(d, amx::kRows); }
  static int64_t lanes_size(int64_t d) { return round_up(d, amx::kDepth) * kTileQ; }
  static int64_t natural_ld(int64_t d) { return round_up(d, amx::kCols); }
  static int64_t natural_size(int64_t d) { return kTileQ * natural_ld(d); }

  // `available` rows may be read, though only n are used: whole tiles of a contiguous tensor are loaded in place.
  static Operand<bf16> rows_operand(const bf16* src, int64_t stride, int64_t n, int64_t available, int64_t d,
                                    bf16* scratch) {
    if (d % amx::kDepth == 0 && round_up(n, amx::kRows) <= available) return {src, stride};
    pack_padded(src, stride, n, d, scratch, round_up(d, amx::kDepth));
    return {scratch, round_up(d, amx::kDepth)};
  }
  static Operand<bf16> sum_operand(const bf16* src, int64_t stride, int64_t n, int64_t d, bf16* scratch) {
    amx::pack_a_transposed(src, stride, n, d, scratch, kTileK);
    return {scratch, kTileK};
  }
  static Operand<bf16> skip_rows(Operand<bf16> a, int64_t n) { return {a.data + n * a.ld, a.ld}; }
  static Operand<bf16> skip_sum(Operand<bf16> a, int64_t n) { return {a.data + n, a.ld}; }

  static void pack_lanes(const bf16* src, int64_t stride, int64_t m, int64_t d, bf16* dst, int64_t lanes) {
    pack_pairs_transposed(src, stride, m, d, dst, lanes);
  }
  static void pack_natural(const bf16* src, int64_t stride, int64_t m, int64_t d, bf16* dst) {
    pack_pairs(src, stride, m, d, dst, natural_ld(d));
  }

  static void rows_product(int64_t n, int64_t lanes, int64_t d, Operand<bf16> a, const bf16* b, float* c) {
    amx::gemm(n, lanes, d, a.data, a.ld, b, lanes, c, lanes, false);
  }
  template <class Beside = Alone>
  static void scores_product(int64_t n, int64_t lanes, int64_t d, Operand<bf16> a, const bf16* b, float* c, float*,
                             const Beside& = {}) {
    rows_product(n, lanes, d, a, b, c);
  }
  // Sum [d][lanes], transposed: weights by pairs of keys are a right operand.
  template <class Beside>
  static void sum_product(int64_t, int64_t lanes, int64_t d, int64_t n, const bf16* weights, Operand<bf16> a,
                          float* sum, bool accumulate, const Beside&) {
    amx::gemm(d, lanes, n, a.data, a.ld, weights, lanes, sum, lanes, accumulate);
  }
  static void scale_sum(float* sum, int64_t, int64_t lanes, int64_t d, const float* factors) {
    for (int64_t lane = 0; lane < lanes; lane += kLanes) {
      const vf factor = load(factors + lane);
      for (int64_t c = 0; c < d; c++) store(sum + c * lanes + lane, load(sum + c * lanes + lane) * factor);
    }
  }
  template <class Out>
  static void write_sum(float* sum, int64_t rows, int64_t lanes, int64_t d, const float* factors, Out* dst) {
    scale_sum(sum, rows, lanes, d, factors);
    transpose(sum, lanes, d, rows, dst, d);
  }
  template <class Beside>
  static void lanes_product(int64_t n, int64_t d, int64_t m, const bf16* a, int64_t lanes, const bf16* b, float* c,
                            int64_t ldc, bool accumulate, const Beside&) {
    amx::gemm(n, d, m, a, weights_ld(lanes), b, natural_ld(d), c, ldc, accumulate);
  }
};

}  // namespace fastfuse::cpu::FASTFUSE_ISA

#endif
