// From products to scores, in place on a tile [keys][lanes].
//
// Natural scores are s = unit x. The usual call, without softcap and bias, needs nothing here: the products serve as x
// with unit = scale > 0. Otherwise the tile is made to hold s itself, unit = 1. Either way
//     exp(s - r) = exp2((x - r / unit) c),   c = unit log2(e)
// where the difference comes first: it is small where it matters, so that large scores cost no accuracy.
//
// A product of float32 has an error of some 2^-24 |q| |k|, which exp turns into a relative one. Over many scores that
// is as large for everybody; a small problem, where it costs nothing, is computed in double and its scores kept as x +
// rest.
#pragma once

#include "cpu/attention_bias.h"

namespace fastfuse::cpu::FASTFUSE_ISA {

struct ScoreUnits {
  bool plain;
  float unit, c;
  explicit ScoreUnits(const AttentionProblem& p)
      : plain(p.softcap == 0 && !p.bias && p.scale > 0), unit(plain ? p.scale : 1.0f), c(unit * kLog2e) {}
};

template <class Engine>
bool keeps_rest(const AttentionProblem& p) {
  constexpr int64_t kSmall = 1 << 18;  // multiplications: some microseconds
  return sizeof(typename Engine::Element) == 4 && p.batch * p.heads * p.seq_q * p.seq_k * p.dim <= kSmall;
}

// tile = unit tanh(scale / softcap tile). slope[n][lanes], or null: ds / d(scale q k^T), needed by the backward only.
inline void apply_softcap(float scale, float softcap, float unit, int64_t count, float* tile, float* slope) {
  const vf inner = splat(scale / softcap), outer = splat(unit);
  for (int64_t i = 0; i < count; i += kLanes) {
    const vf u = tanh(load(tile + i) * inner);
    store(tile + i, u * outer);
    if (slope) store(slope + i, splat(1.0f) - u * u);
  }
}

inline void hide_keys(const QueryTile& t, int64_t begin, int64_t n, float* tile) {
  for (int lane = 0; lane < t.lanes; lane += kLanes) {
    const vi lo = load(t.lo + lane), hi = load(t.hi + lane);
    for (int64_t j = 0; j < n; j++) {
      const vi key = splat(int32_t(begin + j));
      float* at = tile + j * t.lanes + lane;
      store(at, select((vi)((key >= lo) & (key < hi)), load(at), splat(-kInf)));
    }
  }
}

// The factor of a product, or with softcap of its tanh.
inline float score_factor(const AttentionProblem& p) { return p.softcap != 0 ? p.softcap : p.scale; }

// From products to scores, but for what is left of score_factor over `unit`; softcap drops the rest, which may be null.
inline void scale_scores(const AttentionProblem& p, float unit, int64_t count, float* tile, float* rest, float* slope) {
  if (p.softcap != 0) {
    apply_softcap(p.scale, p.softcap, unit, count, tile, slope);
    if (rest) __builtin_memset(rest, 0, count * sizeof(float));
    return;
  }
  const vf scale = splat(unit);
  for (int64_t i = 0; unit != 1 && i < count; i += kLanes) {
    const vf x = load(tile + i), s = x * scale;
    store(tile + i, s);
    if (rest) store(rest + i, fma(load(rest + i), scale, fma_exact(x, scale, -s)));
  }
}

// bias: of the tile's keys, [n][lanes], where the caller has it at hand; else it is read from the problem's.
inline void finish_scores(const AttentionProblem& p, const ScoreUnits& units, const QueryTile& t, KeyRange keys,
                          float* tile, float* rest, float* slope = nullptr, const float* bias = nullptr) {
  const int64_t n = keys.size(), count = n * t.lanes;
  if (!units.plain) {
    const bool with_bias = p.bias && !rest;  // multiplied in one step, with one rounding
    const float factor = with_bias ? score_factor(p) : 1.0f;
    scale_scores(p, with_bias ? 1.0f : score_factor(p), count, tile, rest, slope);
    if (bias) {
      for (int64_t i = 0; i < count; i += kLanes) {
        add_to(tile + i, rest ? rest + i : nullptr, splat(factor), load(bias + i));
      }
    } else if (p.bias) {
      add_bias(p, t, keys.begin, n, factor, tile, rest);
    }
  }
  if (keys.begin < t.all_begin || keys.end > t.all_end) hide_keys(t, keys.begin, n, tile);
}

// exp(unit (x + rest) - lse) where lse = high + low; high = +inf gives 0. With a rest, what the sums and the change of
// base leave out is made up for, so that little more than the rounding of exp2 remains. rest may be null.
template <bool kShort>
FF_INLINE vf probability(const float* x, const float* rest, const ScoreUnits& units, vf high, vf low) {
  constexpr float kLog2eLow = 1.92596303e-8f;  // log2(e) - kLog2e
  const vf unit = splat(units.unit), log2e = splat(kLog2e);
  const vf near = fma_exact(load(x), unit, -high);
  if (!rest) return exp2<kShort>((near - low) * log2e);
  const vf finite = max(near, splat(-1e30f)), far = fma(load(rest), unit, -low);
  const vf s = finite + far, left = far - (s - finite), y = s * log2e;
  const vf slip = fma_exact(s, log2e, -y) + fma(s, splat(kLog2eLow), left * log2e);
  const vf p = exp2<kShort>(y);
  return fma(p, slip * splat(kLn2), p);
}

}  // namespace fastfuse::cpu::FASTFUSE_ISA
