// Attention in float32: bfloat16 and float16 tiles are widened first, float32 is read in place.
#pragma once

#include "cpu/attention_engine.h"
#include "cpu/gemm.h"

namespace fastfuse::cpu::FASTFUSE_ISA {

template <class T>
struct FloatEngine : RowSum {
  using Element = T;
  using Packed = float;
  static constexpr int64_t kTileK = 72;
  static constexpr int64_t kKeyGrain = 4;  // of dropout: its numbers come by four keys
  static constexpr bool kPacksKeys = sizeof(T) != 4;
  static constexpr bool kShortExp = false;
  static constexpr bool kRoundsResults = true;
  static constexpr bool kKeepsByLanes = true;
  static constexpr int kLaneGrain = kGrain;
  static constexpr int64_t kKeptLimit = kKeptBytes;

  struct Session {};

  static int64_t key_scratch(int64_t d) { return kPacksKeys ? kTileK * round_up(d, kLanes) : 0; }
  static int64_t sum_scratch(int64_t d) { return kPacksKeys || d % kLanes ? kTileK * round_up(d, kLanes) : 0; }
  static int64_t lanes_size(int64_t d) { return d * kTileQ; }
  static int64_t natural_ld(int64_t d) { return round_up(d, kLanes); }
  static int64_t natural_size(int64_t d) { return kTileQ * natural_ld(d); }

  static Operand<float> rows_operand(const T* src, int64_t stride, int64_t n, int64_t, int64_t d, float* scratch) {
    if constexpr (!kPacksKeys) {
      return {src, stride};
    } else {
      pack_rows(src, stride, n, d, scratch, round_up(d, kLanes));
      return {scratch, round_up(d, kLanes)};
    }
  }
  // A right operand: its lanes are columns, whole vectors of them.
  static Operand<float> sum_operand(const T* src, int64_t stride, int64_t n, int64_t d, float* scratch) {
    if (!kPacksKeys && d % kLanes == 0) return {(const float*)src, stride};
    pack_rows(src, stride, n, d, scratch, round_up(d, kLanes));
    return {scratch, round_up(d, kLanes)};
  }
  static Operand<float> skip_rows(Operand<float> a, int64_t n) { return {a.data + n * a.ld, a.ld}; }
  static Operand<float> skip_sum(Operand<float> a, int64_t n) { return {a.data + n * a.ld, a.ld}; }

  static void pack_lanes(const T* src, int64_t stride, int64_t m, int64_t d, float* dst, int64_t lanes) {
    pack_transposed(src, stride, m, d, dst, lanes, 1.0f);
  }
  static void pack_natural(const T* src, int64_t stride, int64_t m, int64_t d, float* dst) {
    pack_rows(src, stride, m, d, dst, natural_ld(d));
  }

  template <class Beside>
  static void rows_product(int64_t n, int64_t width, int64_t d, Operand<float> a, const float* b, float* c,
                           const Beside& beside) {
    const int64_t lanes = round_up(width, kLanes);
    for (int64_t i = 0; i < d; i += kChain) {
      const int64_t terms = min_of(kChain, d - i);
      gemm<false, FloatTerm, kGrain>(n, width, terms, a.data + i, a.ld, b + i * lanes, lanes, c, lanes, i > 0,
                                     beside.skip(0, i * 4));
    }
  }
  template <class Beside = Alone>
  static void scores_product(int64_t n, int64_t width, int64_t d, Operand<float> a, const float* b, float* c,
                             float* rest, const Beside& beside = {}) {
    const int64_t lanes = round_up(width, kLanes);
    if (rest) return gemm_precise(n, lanes, d, a.data, a.ld, b, lanes, c, rest, lanes);
    rows_product(n, width, d, a, b, c, beside);
  }
  template <class Beside>
  static void sum_product(int64_t rows, int64_t lanes, int64_t d, int64_t n, const float* weights, Operand<float> b,
                          float* sum, bool accumulate, const Beside& beside) {
    gemm<true>(rows, d, n, weights, lanes, b.data, b.ld, sum, ld(d), accumulate, beside);
  }
  template <class Beside>
  static void lanes_product(int64_t n, int64_t d, int64_t m, const float* a, int64_t lanes, const float* b, float* c,
                            int64_t ldc, bool accumulate, const Beside& beside) {
    gemm<false>(n, d, m, a, lanes, b, natural_ld(d), c, ldc, accumulate, beside);
  }
  template <class To, class Beside>
  static void lanes_result(int64_t n, int64_t d, int64_t m, const float* a, int64_t lanes, const float* b, To to,
                           const Beside& beside) {
    gemm_to<false>(n, d, m, a, lanes, b, natural_ld(d), to, beside);
  }

  // Weights overwrite the float tile that they were computed from, unless they are wanted elsewhere.
  template <bool kByKeys, bool kByLanes>
  struct Weights {
    static constexpr int kRows = 1;
    float* tile;  // [n][lanes]
    int64_t lanes;
    float* by_keys() const { return tile; }   // left operand of sum_product
    float* by_lanes() const { return tile; }  // left operand of lanes_product, leading size weights_ld
    FF_INLINE vf get(int64_t row, int64_t lane) const { return load(tile + row * lanes + lane); }
    template <class V>
    FF_INLINE void put(int64_t row, int64_t lane, V a) const {
      store(tile + row * lanes + lane, a);
    }
    template <class V>
    FF_INLINE void put(int64_t row, int64_t lane, V a, V b) const {
      put(row, lane, a);
      put(row + 1, lane, b);
    }
    void finish(int64_t) const {}
  };
  static int64_t weights_scratch() { return 0; }
  template <bool kByKeys, bool kByLanes>
  static Weights<kByKeys, kByLanes> weights(float* tile, int64_t lanes, float* elsewhere) {
    return {elsewhere ? elsewhere : tile, lanes};
  }
  static int64_t weights_ld(int64_t lanes) { return lanes; }
};

}  // namespace fastfuse::cpu::FASTFUSE_ISA
