// The two arithmetics of attention behind one set of names. Scores are kept transposed, [keys][queries]: vector lanes
// are queries, so that a row of K or V is a left operand in place and softmax never reduces across lanes.
//
//   rows_operand      K or V [n][d] contracted over d:    S^T = K Q^T         dP^T = V dO^T
//   sum_operand       K or V [n][d] contracted over n:    O += P V            dQ += dS K
//   pack_lanes        Q or dO [m][d] as right operand contracted over d, lanes = queries
//   pack_natural      Q or dO [m][d] as right operand contracted over m, lanes = columns d
//
//   rows_product      C[n][lanes] = rows_operand x pack_lanes
//   scores_product    the same, with what rounding left out if `rest` is not null, see attention_scores.h
//   sum_product       Sum (+)= weights x sum_operand; see scale_sum and write_sum for what a Sum is
//   lanes_product     C[n][d] (+)= weights^T x pack_natural     dV += P^T dO     dK += dS^T Q
//
// Weights (P^T or dS^T) of a tile are written row by row, see Weights. Sizes here are in elements of Packed.
#pragma once

#include "cpu/amx_pack.h"
#include "cpu/gemm.h"
#include "cpu/pack.h"

namespace fastfuse::cpu::FASTFUSE_ISA {

constexpr int kTileQ = 64;  // queries of a tile, at most: the lanes

template <class P>
struct Operand {
  const P* data;
  int64_t ld;
};

// Rows of K and V that will be read soon, asked for in step with a product's rows: its arithmetic hides their way from
// memory.
struct Ahead {
  struct Stream {
    const char* data;
    int64_t stride, bytes, rows;  // stride and row size in bytes
  };
  Stream streams[2];

  FF_INLINE void touch(int64_t first, int64_t count) const {
    for (const Stream& s : streams) {
      for (int64_t row = first; row < min_of(first + count, s.rows); row++) {
        for (int64_t b = 0; b < s.bytes; b += 64) __builtin_prefetch(s.data + row * s.stride + b);
      }
    }
  }
};

template <class T>
FF_INLINE Ahead::Stream stream_of(const T* data, int64_t stride, int64_t dim, int64_t rows) {
  return {(const char*)data, stride * int64_t(sizeof(T)), dim * int64_t(sizeof(T)), rows};
}

// Arithmetic in float32; bfloat16 and float16 tiles are widened first, float32 is read in place.
template <class T>
struct FloatEngine {
  using Element = T;
  using Packed = float;
  static constexpr int64_t kTileK = 64;
  static constexpr bool kPacksKeys = sizeof(T) != 4;
  static constexpr bool kShortExp = false;
  static constexpr int64_t kScoreTerms = 64;  // products summed at once: softmax multiplies the error of large scores

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

  static void rows_product(int64_t n, int64_t lanes, int64_t d, Operand<float> a, const float* b, float* c) {
    for (int64_t i = 0; i < d; i += kScoreTerms) {
      gemm<false>(n, lanes, min_of(kScoreTerms, d - i), a.data + i, a.ld, b + i * lanes, lanes, c, lanes, i > 0);
    }
  }
  // ahead: null where keys are packed, which reads them in order anyway.
  static void scores_product(int64_t n, int64_t lanes, int64_t d, Operand<float> a, const float* b, float* c,
                             float* rest, const Ahead* ahead = nullptr) {
    if (rest) return gemm_precise(n, lanes, d, a.data, a.ld, b, lanes, c, rest, lanes);
    if (!ahead) return rows_product(n, lanes, d, a, b, c);
    constexpr int64_t kRows = kAccumulators / 2;  // whole blocks of gemm.h
    for (int64_t i = 0; i < n; i += kRows) {
      ahead->touch(i, kRows);
      rows_product(min_of(kRows, n - i), lanes, d, skip_rows(a, i), b, c + i * lanes);
    }
  }
  // Sum [rows][natural_ld(d)]: queries are rows here, so that lanes are full however few they are.
  static void sum_product(int64_t rows, int64_t lanes, int64_t d, int64_t n, const float* weights, Operand<float> b,
                          float* sum, bool accumulate) {
    gemm<true>(rows, d, n, weights, lanes, b.data, b.ld, sum, natural_ld(d), accumulate);
  }
  static void scale_sum(float* sum, int64_t rows, int64_t, int64_t d, const float* factors) {
    const int64_t ld = natural_ld(d);
    for (int64_t i = 0; i < rows; i++) {
      for (int64_t c = 0; c < ld; c += kLanes) store(sum + i * ld + c, load(sum + i * ld + c) * splat(factors[i]));
    }
  }
  // dst[rows][d] contiguous; factors[rows]
  template <class Out>
  static void write_sum(float* sum, int64_t rows, int64_t, int64_t d, const float* factors, Out* dst) {
    const int64_t ld = natural_ld(d);
    for (int64_t i = 0; i < rows; i++, dst += d) {
      const vf factor = splat(factors[i]);
      int64_t c = 0;
      for (; c + kLanes <= d; c += kLanes) store_as(dst + c, load(sum + i * ld + c) * factor);
      if (c < d) store_as(dst + c, load(sum + i * ld + c) * factor, int(d - c));
    }
  }
  static void lanes_product(int64_t n, int64_t d, int64_t m, const float* a, int64_t lanes, const float* b, float* c,
                            int64_t ldc, bool accumulate) {
    gemm<false>(n, d, m, a, lanes, b, natural_ld(d), c, ldc, accumulate);
  }

  // Weights overwrite the float tile that they were computed from.
  template <bool kByKeys, bool kByLanes>
  struct Weights {
    float* tile;  // [n][lanes]
    int64_t lanes;
    float* by_keys() const { return tile; }   // left operand of sum_product
    float* by_lanes() const { return tile; }  // left operand of lanes_product, leading size weights_ld
    FF_INLINE void put(int64_t row, int64_t lane, vf a) const { store(tile + row * lanes + lane, a); }
    FF_INLINE void put(int64_t row, int64_t lane, vf a, vf b) const {
      put(row, lane, a);
      put(row + 1, lane, b);
    }
    void finish(int64_t) const {}
  };
  static int64_t weights_scratch() { return 0; }
  template <bool kByKeys, bool kByLanes>
  static Weights<kByKeys, kByLanes> weights(float* tile, int64_t lanes, float*) {
    return {tile, lanes};
  }
  static int64_t weights_ld(int64_t lanes) { return lanes; }
};

#if defined(__AMX_BF16__)

// Products of bfloat16 tiles, float32 accumulation.
struct AmxEngine {
  using Element = bf16;
  using Packed = bf16;
  static constexpr int64_t kTileK = 128;
  static constexpr bool kPacksKeys = true;
  static constexpr bool kShortExp = true;

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
    amx::pack_a(src, stride, n, d, scratch, round_up(d, amx::kDepth));
    return {scratch, round_up(d, amx::kDepth)};
  }
  static Operand<bf16> sum_operand(const bf16* src, int64_t stride, int64_t n, int64_t d, bf16* scratch) {
    amx::pack_a_transposed(src, stride, n, d, scratch, kTileK);
    return {scratch, kTileK};
  }
  static Operand<bf16> skip_rows(Operand<bf16> a, int64_t n) { return {a.data + n * a.ld, a.ld}; }
  static Operand<bf16> skip_sum(Operand<bf16> a, int64_t n) { return {a.data + n, a.ld}; }

  static void pack_lanes(const bf16* src, int64_t stride, int64_t m, int64_t d, bf16* dst, int64_t lanes) {
    amx::pack_b_transposed(src, stride, m, d, dst, lanes);
  }
  static void pack_natural(const bf16* src, int64_t stride, int64_t m, int64_t d, bf16* dst) {
    amx::pack_b(src, stride, m, d, dst, natural_ld(d));
  }

  static void rows_product(int64_t n, int64_t lanes, int64_t d, Operand<bf16> a, const bf16* b, float* c) {
    amx::gemm(n, lanes, d, a.data, a.ld, b, lanes, c, lanes, false);
  }
  static void scores_product(int64_t n, int64_t lanes, int64_t d, Operand<bf16> a, const bf16* b, float* c, float*,
                             const Ahead* = nullptr) {
    rows_product(n, lanes, d, a, b, c);
  }
  // Sum [d][lanes], transposed: weights by pairs of keys are a right operand.
  static void sum_product(int64_t, int64_t lanes, int64_t d, int64_t n, const bf16* weights, Operand<bf16> a,
                          float* sum, bool accumulate) {
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
  static void lanes_product(int64_t n, int64_t d, int64_t m, const bf16* a, int64_t lanes, const bf16* b, float* c,
                            int64_t ldc, bool accumulate) {
    amx::gemm(n, d, m, a, weights_ld(lanes), b, natural_ld(d), c, ldc, accumulate);
  }

  template <bool kByKeys, bool kByLanes>
  struct Weights {
    bf16* pairs;  // [n / 2][lanes][2], n padded with zeros to kDepth; where kByKeys
    bf16* rows;   // [n][weights_ld(lanes)], n padded with zeros to kRows; where kByLanes
    int64_t lanes;
    bf16* by_keys() const { return pairs; }
    bf16* by_lanes() const { return rows; }
    FF_INLINE void put(int64_t row, int64_t lane, vf a) const {
      if constexpr (kByKeys) store((float*)(pairs + row * lanes + 2 * lane), amx::pair(a, vf{}));
      if constexpr (kByLanes) store_as(rows + row * weights_ld(lanes) + lane, a);
    }
    FF_INLINE void put(int64_t row, int64_t lane, vf a, vf b) const {
      if constexpr (kByKeys) store((float*)(pairs + row * lanes + 2 * lane), amx::pair(a, b));
      if constexpr (kByLanes) {
        store_as(rows + row * weights_ld(lanes) + lane, a);
        store_as(rows + (row + 1) * weights_ld(lanes) + lane, b);
      }
    }
    void finish(int64_t n) const {
      if constexpr (kByKeys) {
        for (int64_t row = round_up(n, 2); row < round_up(n, amx::kDepth); row += 2) {
          for (int64_t lane = 0; lane < lanes; lane += kLanes) store((float*)(pairs + row * lanes + 2 * lane), vf{});
        }
      }
      if constexpr (kByLanes) {
        const int64_t ld = weights_ld(lanes);
        for (int64_t row = 0; row < n && ld > lanes; row++) store_as(rows + row * ld + lanes, vf{});
        for (int64_t row = n; row < round_up(n, amx::kRows); row++) {
          for (int64_t lane = 0; lane < ld; lane += kLanes) store_as(rows + row * ld + lane, vf{});
        }
      }
    }
  };
  static int64_t weights_scratch() { return 2 * kTileK * kTileQ; }
  template <bool kByKeys, bool kByLanes>
  static Weights<kByKeys, kByLanes> weights(float*, int64_t lanes, bf16* scratch) {
    return {scratch, scratch + kTileK * kTileQ, lanes};
  }
  static int64_t weights_ld(int64_t lanes) { return round_up(lanes, amx::kDepth); }
};

#endif

}  // namespace fastfuse::cpu::FASTFUSE_ISA
