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

// W vectors of lanes. Returns whether the accumulated output has to be multiplied by state.rescale.
template <class Engine, int W>
FF_INLINE bool softmax_columns(const float* x, const float* rest, int64_t n, int64_t lanes, int lane,
                               const ScoreUnits& units, SoftmaxState& state, const int32_t* keep,
                               const typename Engine::Weights& weights) {
  const vf c = splat(units.c);
  vf top[W], offset[W], sum[W];
  vi grown{};
#pragma GCC unroll 4
  for (int w = 0; w < W; w++) top[w] = splat(-kInf);
  for (int64_t j = 0; j < n; j++) {
#pragma GCC unroll 4
    for (int w = 0; w < W; w++) top[w] = max(top[w], load(x + j * lanes + w * kLanes));
  }
#pragma GCC unroll 4
  for (int w = 0; w < W; w++) {
    const vf old = load(state.max + lane + w * kLanes);
    grown |= (vi)((top[w] - old) * c > splat(kSlack));  // -inf - -inf = NaN compares false
  }
  bool rescaled = false;
  for (int i = 0; i < kLanes; i++) rescaled |= grown[i] != 0;
#pragma GCC unroll 4
  for (int w = 0; w < W; w++) {
    float *m = state.max + lane + w * kLanes, *l = state.sum + lane + w * kLanes;
    const vf old = load(m), now = rescaled ? max(old, top[w]) : old;
    sum[w] = load(l);
    offset[w] = select((vi)(now == splat(-kInf)), vf{}, now);
    if (rescaled) {
      const vf factor = exp2((old - offset[w]) * c);
      store(state.rescale + lane + w * kLanes, factor);
      store(m, now);
      sum[w] *= factor;
    }
  }
  for (int64_t j = 0; j < n; j += 2) {
    const bool two = j + 1 < n;
#pragma GCC unroll 4
    for (int w = 0; w < W; w++) {
      vf p[2] = {};
      for (int r = 0; r < (two ? 2 : 1); r++) {
        const int64_t at = (j + r) * lanes + w * kLanes;
        vf s = load(x + at) - offset[w];
        if (rest) s += load(rest + at);
        p[r] = exp2_as<Engine::kShortExp>(s * c);
        sum[w] += p[r];
        if (keep) p[r] = (vf)((vi)p[r] & load(keep + at));
      }
      weights.put(j, lane + w * kLanes, p[0], p[1], two);
    }
  }
#pragma GCC unroll 4
  for (int w = 0; w < W; w++) store(state.sum + lane + w * kLanes, sum[w]);
  return rescaled;
}

// Weights of the tile x[n][lanes]. Returns whether any lane's reference moved; lanes' factors are then all in
// state.rescale.
template <class Engine>
bool softmax_tile(const float* x, const float* rest, int64_t n, int64_t lanes, const ScoreUnits& units,
                  SoftmaxState& state, const int32_t* keep, const typename Engine::Weights& weights) {
  bool moved[kTileQ / kLanes] = {}, any = false;
  for (int lane = 0; lane < lanes;) {
    const int64_t vectors = (lanes - lane) / kLanes;
    const float *at = x + lane, *rest_at = rest ? rest + lane : nullptr;
    const int32_t* kept = keep ? keep + lane : nullptr;
    bool& here = moved[lane / kLanes];
    if (vectors >= 4) {
      here = softmax_columns<Engine, 4>(at, rest_at, n, lanes, lane, units, state, kept, weights);
      for (int w = 1; w < 4; w++) moved[lane / kLanes + w] = here;
      lane += 4 * kLanes;
    } else if (vectors >= 2) {
      here = softmax_columns<Engine, 2>(at, rest_at, n, lanes, lane, units, state, kept, weights);
      moved[lane / kLanes + 1] = here;
      lane += 2 * kLanes;
    } else {
      here = softmax_columns<Engine, 1>(at, rest_at, n, lanes, lane, units, state, kept, weights);
      lane += kLanes;
    }
    any |= here;
  }
  weights.finish(n);
  for (int lane = 0; any && lane < lanes; lane += kLanes) {
    if (!moved[lane / kLanes]) store(state.rescale + lane, splat(1.0f));
  }
  return any;
}

}  // namespace fastfuse::cpu::FASTFUSE_ISA
