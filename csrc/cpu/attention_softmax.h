// Online softmax of one score tile, vertical: each lane is a query and each row a key.
//
//     m' = max(m, max_j x_j)   only where some lane's maximum grew by more than 2^kSlack; until then the old one
//     serves: p_j = exp2(c (x_j - m'))      any reference m gives the same ratio of out to l, and p <= 2^kSlack can not
//     overflow l' = l exp2(c (m - m')) + sum_j p_j
#pragma once

#include "cpu/attention_scores.h"

namespace fastfuse::cpu::FASTFUSE_ISA {

constexpr float kSlack = 8;

struct alignas(64) SoftmaxState {
  float max[kTileQ];  // m, in units of the tile's x; -inf before the first visible key
  float sum[kTileQ];  // l
  float rescale[kTileQ];

  void reset(int lanes) {
    for (int lane = 0; lane < lanes; lane += kLanes) {
      store(max + lane, splat(-kInf));
      store(sum + lane, vf{});
    }
  }
};

// W vectors V of lanes; kBare: no rest and no dropout. Returns whether the output summed so far has to be multiplied by
// state.rescale.
template <class Engine, class V, int W, bool kBare, class Weights>
bool softmax_columns(const float* x, const float* rest, int64_t n, int64_t lanes, int lane, const ScoreUnits& units,
                     SoftmaxState& state, const int32_t* keep, Weights weights) {
  constexpr int kEach = sizeof(V) / sizeof(float);
  using Ints = decltype(V{} == V{});
  const V c = splat_as<V>(units.c), none = splat_as<V>(-kInf);
  V top[W], next[W], offset[W], sum[W];
  Ints grown{};
#pragma GCC unroll 4
  for (int w = 0; w < W; w++) top[w] = next[w] = none;
  for (int64_t j = 0; j < n; j += 2) {
    const float *even = x + j * lanes, *odd = j + 1 < n ? even + lanes : even;
#pragma GCC unroll 4
    for (int w = 0; w < W; w++) {
      top[w] = max(top[w], load_as<V>(even + w * kEach));
      next[w] = max(next[w], load_as<V>(odd + w * kEach));
    }
  }
#pragma GCC unroll 4
  for (int w = 0; w < W; w++) {
    top[w] = max(top[w], next[w]);
    const V old = load_as<V>(state.max + lane + w * kEach);
    grown |= (top[w] - old) * c > splat_as<V>(kSlack);  // -inf - -inf = NaN compares false
  }
  bool rescaled = false;
  for (int i = 0; i < kEach; i++) rescaled |= grown[i] != 0;
#pragma GCC unroll 4
  for (int w = 0; w < W; w++) {
    float *m = state.max + lane + w * kEach, *l = state.sum + lane + w * kEach;
    const V old = load_as<V>(m), now = rescaled ? max(old, top[w]) : old;
    sum[w] = V{};  // of this tile alone: short sums of short sums round less than a long one
    offset[w] = select(now == none, V{}, now);
    if (rescaled) {
      const V factor = exp2((old - offset[w]) * c);
      store(state.rescale + lane + w * kEach, factor);
      store(m, now);
      store(l, load_as<V>(l) * factor);
    }
  }
  const auto weigh = [&](int64_t row, auto rows) FF_LAMBDA {
    constexpr int N = decltype(rows)::value * W;
    const auto at = [&](int i) FF_LAMBDA { return (row + i / W) * lanes + i % W * kEach; };
    const auto logits = in_step<N>([&](int i) FF_LAMBDA {
      V s = load_as<V>(x + at(i)) - offset[i % W];
      if (!kBare && rest) s += load_as<V>(rest + at(i));
      return s * c;
    });
    auto p = exp2<Engine::kShortExp>(logits);
#pragma GCC unroll 8
    for (int i = 0; i < N; i++) sum[i % W] += p.at[i];
    if (!kBare && keep) {
      p = in_step<N>([&](int i)
                         FF_LAMBDA { return (V)((Ints)p.at[i] & (Ints)load_as<V>((const float*)keep + at(i))); });
    }
#pragma GCC unroll 4
    for (int w = 0; w < W; w++) {
      if constexpr (N == W) {
        weights.put(row, lane + w * kEach, p.at[w]);
      } else {
        weights.put(row, lane + w * kEach, p.at[w], p.at[W + w]);
      }
    }
  };
  constexpr int kRows = Weights::kRows;
  int64_t j = 0;
  for (; j + kRows <= n; j += kRows) weigh(j, Constant<kRows>{});
  for (; j < n; j++) weigh(j, Constant<1>{});
#pragma GCC unroll 4
  for (int w = 0; w < W; w++) {
    float* l = state.sum + lane + w * kEach;
    store(l, load_as<V>(l) + sum[w]);
  }
  return rescaled;
}

// Weights of the first `width` lanes of the tile x[n][width rounded up to kLanes]. Returns whether any lane's reference
// moved; lanes' factors are then all in state.rescale.
template <class Engine, bool kBare, class Weights>
bool softmax_tile(const float* x, const float* rest, int64_t n, int64_t width, const ScoreUnits& units,
                  SoftmaxState& state, const int32_t* keep, const Weights& weights) {
  const int64_t lanes = round_up(width, kLanes);
  bool moved[kTileQ / kLanes] = {}, any = false;
  for (int lane = 0, vectors; lane < width; lane += vectors * kLanes) {
    const float *at = x + lane, *rest_at = rest ? rest + lane : nullptr;
    const int32_t* kept = keep ? keep + lane : nullptr;
    const auto columns = [&](auto whole, auto w) {
      return softmax_columns<Engine, decltype(whole), decltype(w)::value, kBare>(at, rest_at, n, lanes, lane, units,
                                                                                 state, kept, weights);
    };
    const int64_t left = (width - lane) / kLanes;
    vectors = int(max_of<int64_t>(min_of<int64_t>(left, 4), 1));
    const bool here = vectors == 4   ? columns(vf{}, Constant<4>{})
                      : vectors == 3 ? columns(vf{}, Constant<3>{})
                      : vectors == 2 ? columns(vf{}, Constant<2>{})
                      : left == 1    ? columns(vf{}, Constant<1>{})
                                     : columns(vf_half{}, Constant<1>{});
    for (int w = 0; w < vectors; w++) moved[lane / kLanes + w] = here;
    any |= here;
  }
  weights.finish(n);
  for (int lane = 0; any && lane < lanes; lane += kLanes) {
    if (!moved[lane / kLanes]) store(state.rescale + lane, splat(1.0f));
  }
  return any;
}

template <class Engine, class Weights>
bool softmax_tile(const float* x, const float* rest, int64_t n, int64_t width, const ScoreUnits& units,
                  SoftmaxState& state, const int32_t* keep, const Weights& weights) {
  if (rest || keep) return softmax_tile<Engine, false>(x, rest, n, width, units, state, keep, weights);
  return softmax_tile<Engine, true>(x, rest, n, width, units, state, keep, weights);
}

}  // namespace fastfuse::cpu::FASTFUSE_ISA
