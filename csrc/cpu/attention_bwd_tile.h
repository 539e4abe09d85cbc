// The arithmetic of one tile of the backward: from the products X and dP to the weights P and dS.
//
//     P = exp(scale X - lse),   dS = P ((dP - center) tanh(gate) - offset)
//
// where center and offset hold delta, see attention_bwd.h.
#pragma once

#include "cpu/arena.h"
#include "cpu/attention_dropout.h"
#include "cpu/attention_scores.h"

namespace fastfuse::cpu::FASTFUSE_ISA {

template <class Engine>
struct GradientTile {
  using PWeights = typename Engine::template Weights<false, true>;
  using DsWeights = typename Engine::template Weights<true, true>;
  using Kept = typename Engine::template Weights<true, false>;
  enum class From { kScores, kKept, kProbabilities };  // what there is of P

  const AttentionBackward& p;
  const ScoreUnits units;
  float *scores, *rest, *dp, *dp_rest, *slope, *ds_bias;  // [kTileK][lanes]
  int32_t* keep;                                          // [kTileK][lanes]
  alignas(64) float lse_high[kTileQ], lse_low[kTileQ], lane_dlse[kTileQ], lane_sink[kTileQ], gate[kTileQ],
      dgate[kTileQ];
  alignas(64) float center[kTileQ], offset[kTileQ];
  Kept kept{};
  alignas(64) float kept_factor[kTileQ];   // P = kept kept_factor
  alignas(64) float value_factor[kTileQ];  // of dO instead: with tanh(gate)

  explicit GradientTile(const AttentionBackward& problem) : p(problem), units(problem) {}

  void take(Arena& arena, bool own_bias) {
    constexpr int64_t tile = Engine::kTileK * kTileQ;
    scores = arena.take<float>(tile);
    rest = keeps_rest<Engine>(p) ? arena.take<float>(tile) : nullptr;
    dp = arena.take<float>(tile);
    dp_rest = keeps_rest<Engine>(p) ? arena.take<float>(tile) : nullptr;
    slope = p.softcap != 0 ? arena.take<float>(tile) : nullptr;
    ds_bias = p.dbias && own_bias ? arena.take<float>(tile) : nullptr;
    keep = p.dropout_p > 0 ? arena.take<int32_t>(tile) : nullptr;
  }

  // What the tile's rows bring along; delta: of them.
  void load_lanes(const QueryTile& t, const float* delta) {
    for (int lane = 0; lane < t.lanes; lane += kLanes) load_lse(p, p.lse, t, lane, lse_high + lane, lse_low + lane);
    for (int lane = 0; lane < t.lanes; lane++) {
      const bool real = lane < t.rows && lse_high[lane] != kInf;
      offset[lane] = real ? delta[lane] : 0;
      lane_dlse[lane] = real && p.dlse ? p.dlse[t.row + lane] : 0;
      center[lane] = lane_sink[lane] = dgate[lane] = 0;
    }
    if (p.sink) {
      head_values(p.sink, t, lane_sink);
      for (int lane = 0; lane < t.lanes; lane += kLanes) {
        const vf logit = load(lane_sink + lane) - load(lse_high + lane) - load(lse_low + lane);
        store(lane_sink + lane, exp2(logit * splat(kLog2e)));
      }
    }
    if (p.gate) {
      head_values(p.gate, t, gate);
      for (int lane = 0; lane < t.lanes; lane += kLanes) store(gate + lane, tanh(load(gate + lane)));
    }
  }

  // What the forward kept of this tile serves instead of its scores; references: of its lanes.
  void take_kept(Kept weights, const float* references, int64_t lanes) {
    kept = weights;
    for (int64_t lane = 0; lane < lanes; lane += kLanes) {
      const vf factor =
          probability<false>(references + lane, nullptr, units, load(lse_high + lane), load(lse_low + lane));
      store(kept_factor + lane, factor);
      store(value_factor + lane, p.gate ? factor * load(gate + lane) : factor);
    }
  }

  // scores and dp hold the products; afterwards the weights do, P where writes_p, and bias_sums [n][lanes] has dS added;
  // where that is null, dbias has.
  template <From kFrom>
  void find_gradients(const QueryTile& t, KeyRange keys, const PWeights& p_weights, const DsWeights& ds_weights,
                      float* bias_sums) {
    const int64_t n = keys.size();
    if (p.dbias && !bias_sums) __builtin_memset(ds_bias, 0, n * t.lanes * sizeof(float));
    float* sums = bias_sums ? bias_sums : ds_bias;
    if (keep) dropout_tile(p, t, keys.begin, n, keep);
    const bool whole = has_all_keys(t, keys);
    const bool bare = !keep && !p.gate && !slope;
    for (int lane = 0; lane < t.lanes; lane += kLanes) {
      if (whole) find_probabilities<kFrom>(n, t.lanes, lane);
      const auto column = [&](auto from) {
        constexpr From kColumn = decltype(from)::value;
        const auto gradients = bare && sums ? &GradientTile::gradient_column<kColumn, true, true>
                               : bare       ? &GradientTile::gradient_column<kColumn, true, false>
                                            : &GradientTile::gradient_column<kColumn, false, false>;
        (this->*gradients)(n, t.lanes, lane, p_weights, ds_weights, sums);
      };
      whole ? column(Constant<From::kProbabilities>{}) : column(Constant<kFrom>{});
    }
    p_weights.finish(n);
    ds_weights.finish(n);
    if (p.dbias && !bias_sums) add_bias_gradient(t, p.dbias_stride, keys.begin, n, ds_bias, p.dbias);
  }

  // Where kept weights serve as they are, attention_bwd_values.h, P is not written.
  static constexpr bool writes_p(From from) { return from != From::kKept || !Engine::kKeepsByLanes; }

  // What a column is made from. A copy of it can stay in registers, where stores to tiles do not reach it.
  struct Source {
    const float *scores, *rest, *dp;
    const int32_t* keep;
    Kept kept;
    ScoreUnits units;

    // dP of one vector of lanes as it reaches the scores' probabilities: dropped and scaled like them, before the gate.
    FF_INLINE vf received(int64_t at, vf kept_share) const {
      const vf g = load(dp + at);
      return keep ? (vf)((vi)(g * kept_share) & load(keep + at)) : g;
    }

    // Of one vector of lanes; high, low: its lse, high being kept_factor where there are kept weights.
    template <From kFrom>
    FF_INLINE vf find_probability(int64_t row, int64_t lanes, int lane, vf high, vf low) const {
      const int64_t at = row * lanes + lane;
      if constexpr (kFrom == From::kProbabilities) return load(scores + at);
      if constexpr (kFrom == From::kKept) return kept.get(row, lane) * high;
      return probability<Engine::kShortExp>(scores + at, rest ? rest + at : nullptr, units, high, low);
    }
  };
  Source source() const { return {scores, rest, dp, keep, kept, units}; }

  template <From kFrom>
  FF_INLINE vf high_of(int lane) const {
    return load((kFrom == From::kKept ? kept_factor : lse_high) + lane);
  }

  // One vector of lanes: scores become probabilities, and delta is summed from them in two steps,
  //     center = sum_j p_j dp_j,   delta = center (1 - p_sink) + sum_j p_j (dp_j - center),
  // the second tiny where one key has nearly all probability, and its error too; left out where p is short of float32.
  template <From kFrom>
  void find_probabilities(int64_t n, int64_t lanes, int lane) {
    const Source from = source();
    const vf high = high_of<kFrom>(lane), low = load(lse_low + lane), kept_share = splat(1 / (1 - p.dropout_p));
    vf sum{}, correction{};
    for (int64_t j = 0; j < n; j++) {
      const int64_t at = j * lanes + lane;
      const vf prob = from.template find_probability<kFrom>(j, lanes, lane, high, low);
      store(scores + at, prob);
      sum = fma(prob, from.received(at, kept_share), sum);
    }
    if constexpr (!Engine::kShortExp) {
      for (int64_t j = 0; j < n; j++) {
        const int64_t at = j * lanes + lane;
        correction = fma(load(scores + at), from.received(at, kept_share) - sum, correction);
      }
      correction -= load(lane_sink + lane) * sum;
    }
    const vf open = p.gate ? load(gate + lane) : splat(1.0f);
    store(center + lane, sum);
    store(offset + lane, correction * open - load(lane_dlse + lane));
  }

  // One vector of lanes: from products to the weights P and dS. kBare: no dropout, gate and softcap; kSums: bias_sums is
  // not null, left open where not kBare.
  template <From kFrom, bool kBare, bool kSums>
  void gradient_column(int64_t n, int64_t lanes, int lane, PWeights p_weights, DsWeights ds_weights, float* bias_sums) {
    const Source from = source();
    const vf high = high_of<kFrom>(lane), low = load(lse_low + lane), middle = load(center + lane),
             below = load(offset + lane);
    const vf open = p.gate ? load(gate + lane) : splat(1.0f), kept_share = splat(1 / (1 - p.dropout_p));
    vf gate_sum = load(dgate + lane);
    const auto gradient = [&](int64_t row, vf& weight) FF_LAMBDA {
      const int64_t at = row * lanes + lane;
      const vf prob = from.template find_probability<kFrom>(row, lanes, lane, high, low);
      if constexpr (kBare) {
        weight = prob;
        const vf ds = prob * (load(from.dp + at) - middle - below);
        if constexpr (kSums) store(bias_sums + at, load(bias_sums + at) + ds);
        return ds;
      }
      const vf g = from.received(at, kept_share);
      weight = from.keep ? (vf)((vi)(prob * kept_share) & load(from.keep + at)) : prob;
      if (p.gate) {
        gate_sum = fma(prob, g, gate_sum);
        weight *= open;
      }
      const vf ds = prob * fma(g - middle, open, -below);
      if (bias_sums) store(bias_sums + at, load(bias_sums + at) + ds);
      return slope ? ds * load(slope + at) : ds;
    };
    int64_t j = 0;
    vf weight[2], ds[2];
    for (; j + 1 < n; j += 2) {
      ds[0] = gradient(j, weight[0]);
      ds[1] = gradient(j + 1, weight[1]);
      if constexpr (writes_p(kFrom)) p_weights.put(j, lane, weight[0], weight[1]);
      ds_weights.put(j, lane, ds[0], ds[1]);
    }
    if (j < n) {
      ds[0] = gradient(j, weight[0]);
      if constexpr (writes_p(kFrom)) p_weights.put(j, lane, weight[0]);
      ds_weights.put(j, lane, ds[0]);
    }
    store(dgate + lane, gate_sum);
  }
};

}  // namespace fastfuse::cpu::FASTFUSE_ISA
