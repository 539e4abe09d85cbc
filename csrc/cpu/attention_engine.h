// Three arithmetics of attention behind one set of names: FloatEngine (attention_engine_float.h), PairEngine
// (attention_engine_pairs.h) and AmxEngine (attention_engine_amx.h). Scores are kept transposed, [keys][queries]: vector
// lanes are queries, so that a row of K or V is a left operand in place and softmax never reduces across lanes.
//
//   rows_operand      K or V [n][d] contracted over d:    S^T = K Q^T         dP^T = V dO^T
//   sum_operand       K or V [n][d] contracted over n:    O += P V            dQ += dS K
//   pack_lanes        Q or dO [m][d] as right operand contracted over d, lanes = queries
//   pack_natural      Q or dO [m][d] as right operand contracted over m, lanes = columns d
//
//   rows_product      C[n][lanes] = rows_operand x pack_lanes, its first `width` lanes; lanes = width rounded up to kLanes
//   scores_product    the same, with what rounding left out if `rest` is not null, see attention_scores.h
//   sum_product       Sum (+)= weights x sum_operand; see scale_sum and write_sum for what a Sum is
//   lanes_product     C[n][d] (+)= weights^T x pack_natural     dV += P^T dO     dK += dS^T Q
//   lanes_result      the same, to what gemm.h calls Rounded, d whole vectors; where kRoundsResults
//
// `beside` is what a product asks memory for meanwhile, see ahead.h and feed.h. Weights (P^T or dS^T) of a tile are written
// Weights::kRows rows at a time; kKeepsByLanes: what a forward keeps of them is a left operand of lanes_product too. Sizes
// here are in elements of Packed.
#pragma once

#include "cpu/feed.h"
#include "cpu/pack.h"

namespace fastfuse::cpu::FASTFUSE_ISA {

constexpr int kTileQ = 64;  // queries of a tile, at most: the lanes

template <class P>
struct Operand {
  const P* data;
  int64_t ld;
};

// A Sum with queries as rows, [rows][round_up(d, kLanes)]: lanes are full however few queries there are.
struct RowSum {
  static int64_t ld(int64_t d) { return round_up(d, kLanes); }
  static void scale_sum(float* sum, int64_t rows, int64_t, int64_t d, const float* factors) {
    for (int64_t i = 0; i < rows; i++, sum += ld(d)) {
      for (int64_t c = 0; c < ld(d); c += kLanes) store(sum + c, load(sum + c) * splat(factors[i]));
    }
  }
  // dst[rows][d] contiguous; factors[rows]
  template <class Out>
  static void write_sum(const float* sum, int64_t rows, int64_t, int64_t d, const float* factors, Out* dst) {
    for (int64_t i = 0; i < rows; i++, sum += ld(d), dst += d) {
      const vf factor = splat(factors[i]);
      int64_t c = 0;
      for (; c + kLanes <= d; c += kLanes) store_as(dst + c, load(sum + c) * factor);
      if (c < d) store_as(dst + c, load(sum + c) * factor, int(d - c));
    }
  }
};

}  // namespace fastfuse::cpu::FASTFUSE_ISA
