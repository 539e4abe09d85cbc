// The two arithmetics of attention behind one set of names. Scores are kept transposed, [keys][queries]: vector lanes
// are queries, so that a row of K or V is a left operand in place and softmax never reduces across lanes.
//
//   rows_operand      K or V [n][d], contracted over d: left operand of   S^T = K Q^T        dP^T = V dO^T
//   columns_operand   K or V [n][d], contracted over n: left operand of   O^T += V^T P^T     dQ^T += K^T dS^T
//   pack_lanes        Q or dO [m][d] as right operand contracted over d, lanes = queries
//   pack_natural      Q or dO [m][d] as right operand contracted over m, lanes = columns d
//
//   rows_product      C[n][lanes] = rows_operand x pack_lanes       scores_product   the same, with rest see
//   attention_scores.h columns_product   C[d][lanes] (+)= columns_operand x weights lanes_product     C[n][d] (+)=
//   weights^T x pack_natural            dV += P^T dO     dK += dS^T Q
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

// Arithmetic in float32; bfloat16 and float16 tiles are widened first, float32 is read in place.
template <class T>
struct FloatEngine {
  using Element = T;
  using Packed = float;
  static constexpr int64_t kTileK = 64;
  static constexpr bool kPacksKeys = sizeof(T) != 4;
  static constexpr bool kSameColumns = true;  // rows_operand also serves as columns_operand
  static constexpr bool kShortExp = false;
  static constexpr int64_t kScoreTerms = 64;  // products summed at once: softmax multiplies the error of large scores

  struct Session {};

  static int64_t key_scratch(int64_t d) { return kPacksKeys ? kTileK * round_up(d, kLanes) : 0; }
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
  static Operand<float> columns_operand(const T* src, int64_t stride, int64_t n, int64_t d, float* scratch) {
    return rows_operand(src, stride, n, n, d, scratch);
  }
  static Operand<float> skip_rows(Operand<float> a, int64_t n) { return {a.data + n * a.ld, a.ld}; }
  static Operand<float> skip_columns(Operand<float> a, int64_t n) { return {a.data + n * a.ld, a.ld}; }

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
  static void scores_product(int64_t n, int64_t lanes, int64_t d, Operand<float> a, const float* b, float* c,
                             float* rest) {
    if (rest) return gemm_precise(n, lanes, d, a.data, a.ld, b, lanes, c, rest, lanes);
    rows_product(n, lanes, d, a, b, c);
  }
  static void columns_product(int64_t d, int64_t lanes, int64_t n, Operand<float> a, const float* b, float* c,
                              bool accumulate) {
    gemm<true>(d, lanes, n, a.data, a.ld, b, lanes, c, lanes, accumulate);
  }
  static void lanes_product(int64_t n, int64_t d, int64_t m, const float* a, int64_t lanes, const float* b, float* c,
                            int64_t ldc, bool accumulate) {
    gemm<false>(n, d, m, a, lanes, b, natural_ld(d), c, ldc, accumulate);
  }

  // Weights overwrite the float tile that they were computed from.
  struct Weights {
    float* tile;  // [n][lanes]
    int64_t lanes;
    float* by_keys() const { return tile; }   // right operand of columns_product
    float* by_lanes() const { return tile; }  // left operand of lanes_product, leading size weights_ld
    FF_INLINE void put(int64_t row, int64_t lane, vf a, vf b, bool has_b) const {
      store(tile + row * lanes + lane, a);
      if (has_b) store(tile + (row + 1) * lanes + lane, b);
    }
    void finish(int64_t) const {}
  };
  static int64_t weights_scratch() { return 0; }
  static Weights weights(float* tile, int64_t lanes, float*, bool, bool) { return {tile, lanes}; }
  static int64_t weights_ld(int64_t lanes) { return lanes; }
};

#if defined(__AMX_BF16__)

// Products of bfloat16 tiles, float32 accumulation.
struct AmxEngine {
  using Element = bf16;
  using Packed = bf16;
  static constexpr int64_t kTileK = 128;
  static constexpr bool kPacksKeys = true;
  static constexpr bool kSameColumns = false;
  static constexpr bool kShortExp = true;

  using Session = amx::Session;

  static int64_t key_scratch(int64_t d) { return kTileK * round_up(d, amx::kDepth); }
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
  static Operand<bf16> columns_operand(const bf16* src, int64_t stride, int64_t n, int64_t d, bf16* scratch) {
    amx::pack_a_transposed(src, stride, n, d, scratch, kTileK);
    return {scratch, kTileK};
  }
  static Operand<bf16> skip_rows(Operand<bf16> a, int64_t n) { return {a.data + n * a.ld, a.ld}; }
  static Operand<bf16> skip_columns(Operand<bf16> a, int64_t n) { return {a.data + n, a.ld}; }

  static void pack_lanes(const bf16* src, int64_t stride, int64_t m, int64_t d, bf16* dst, int64_t lanes) {
    amx::pack_b_transposed(src, stride, m, d, dst, lanes);
  }
  static void pack_natural(const bf16* src, int64_t stride, int64_t m, int64_t d, bf16* dst) {
    amx::pack_b(src, stride, m, d, dst, natural_ld(d));
  }

  static void rows_product(int64_t n, int64_t lanes, int64_t d, Operand<bf16> a, const bf16* b, float* c) {
    amx::gemm(n, lanes, d, a.data, a.ld, b, lanes, c, lanes, false);
  }
  static void scores_product(int64_t n, int64_t lanes, int64_t d, Operand<bf16> a, const bf16* b, float* c, float*) {
    rows_product(n, lanes, d, a, b, c);
  }
  static void columns_product(int64_t d, int64_t lanes, int64_t n, Operand<bf16> a, const bf16* b, float* c,
                              bool accumulate) {
    amx::gemm(d, lanes, n, a.data, a.ld, b, lanes, c, lanes, accumulate);
  }
  static void lanes_product(int64_t n, int64_t d, int64_t m, const bf16* a, int64_t lanes, const bf16* b, float* c,
                            int64_t ldc, bool accumulate) {
    amx::gemm(n, d, m, a, weights_ld(lanes), b, natural_ld(d), c, ldc, accumulate);
  }

  struct Weights {
    bf16* pairs;  // [n / 2][lanes][2], n padded with zeros to kDepth; or null
    bf16* rows;   // [n][weights_ld(lanes)], n padded with zeros to kRows; or null
    int64_t lanes;
    bf16* by_keys() const { return pairs; }
    bf16* by_lanes() const { return rows; }
    FF_INLINE void put(int64_t row, int64_t lane, vf a, vf b, bool has_b) const {
      if (pairs) store((float*)(pairs + row * lanes + 2 * lane), amx::pair(a, has_b ? b : vf{}));
      if (rows) {
        store_as(rows + row * weights_ld(lanes) + lane, a);
        if (has_b) store_as(rows + (row + 1) * weights_ld(lanes) + lane, b);
      }
    }
    void finish(int64_t n) const {
      if (pairs) {
        for (int64_t row = round_up(n, 2); row < round_up(n, amx::kDepth); row += 2) {
          for (int64_t lane = 0; lane < lanes; lane += kLanes) store((float*)(pairs + row * lanes + 2 * lane), vf{});
        }
      }
      if (rows) {
        const int64_t ld = weights_ld(lanes);
        for (int64_t row = 0; row < n && ld > lanes; row++) store_as(rows + row * ld + lanes, vf{});
        for (int64_t row = n; row < round_up(n, amx::kRows); row++) {
          for (int64_t lane = 0; lane < ld; lane += kLanes) store_as(rows + row * ld + lane, vf{});
        }
      }
    }
  };
  static int64_t weights_scratch() { return 2 * kTileK * kTileQ; }
  static Weights weights(float*, int64_t lanes, bf16* scratch, bool by_keys, bool by_lanes) {
    return {by_keys ? scratch : nullptr, by_lanes ? scratch + kTileK * kTileQ : nullptr, lanes};
  }
  static int64_t weights_ld(int64_t lanes) { return round_up(lanes, amx::kDepth); }
};

#endif

}  // namespace fastfuse::cpu::FASTFUSE_ISA
