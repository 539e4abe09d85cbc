// Weights of a tile in bfloat16, in the two layouts that the paired products read. Only where AVX-512-BF16 is; included
// elsewhere it defines nothing.
#pragma once

#if defined(__AVX512BF16__)

#include "cpu/attention_engine.h"
#include "cpu/pack_pairs.h"

namespace fastfuse::cpu::FASTFUSE_ISA {

FF_INLINE int64_t weights_ld(int64_t lanes) { return round_up(lanes, max_of(kPairDepth, kLanes)); }

template <bool kByKeys, bool kByLanes>
struct PairWeights {
  static constexpr int kRows = 2;
  bf16* pairs;  // [n / 2][lanes][2], n padded with zeros to kPairDepth; where kByKeys
  bf16* rows;   // [n][weights_ld(lanes)], n padded with zeros to kPairRows; where kByLanes
  int64_t lanes;
  bf16* by_keys() const { return pairs; }
  bf16* by_lanes() const { return rows; }
  FF_INLINE vf get(int64_t row, int64_t lane) const {
    const vu both = (vu)load((const float*)(pairs + row / 2 * 2 * lanes + 2 * lane));
    return (vf)(row % 2 ? both & 0xffff0000u : both << 16);
  }
  template <class V>
  FF_INLINE void put(int64_t row, int64_t lane, V a) const {
    if constexpr (kByKeys) store((float*)(pairs + row * lanes + 2 * lane), pair(a, V{}));
    if constexpr (kByLanes) store_as(rows + row * weights_ld(lanes) + lane, a);
  }
  template <class V>
  FF_INLINE void put(int64_t row, int64_t lane, V a, V b) const {
    if constexpr (kByKeys) store((float*)(pairs + row * lanes + 2 * lane), pair(a, b));
    if constexpr (kByLanes) {
      store_as(rows + row * weights_ld(lanes) + lane, a);
      store_as(rows + (row + 1) * weights_ld(lanes) + lane, b);
    }
  }
  void finish(int64_t n) const {
    if constexpr (kByKeys) {
      for (int64_t row = round_up(n, 2); row < round_up(n, kPairDepth); row += 2) {
        for (int64_t lane = 0; lane < lanes; lane += kLanes) store((float*)(pairs + row * lanes + 2 * lane), vf{});
      }
    }
    if constexpr (kByLanes) {
      const int64_t ld = weights_ld(lanes);
      for (int64_t row = 0; row < n && ld > lanes; row++) store_as(rows + row * ld + lanes, vf{});
      for (int64_t row = n; row < round_up(n, kPairRows); row++) {
        for (int64_t lane = 0; lane < ld; lane += kLanes) store_as(rows + row * ld + lane, vf{});
      }
    }
  }
};

// The part of an engine that writes such weights, for tiles of kKeys keys.
template <int64_t kKeys>
struct PairedWeights {
  static constexpr int64_t kTileK = kKeys;
  static int64_t weights_scratch() { return 2 * kTileK * kTileQ; }
  template <bool kByKeys, bool kByLanes>
  using Weights = PairWeights<kByKeys, kByLanes>;
  template <bool kByKeys, bool kByLanes>
  static Weights<kByKeys, kByLanes> weights(float*, int64_t lanes, bf16* scratch) {
    return {scratch, scratch + kTileK * kTileQ, lanes};
  }
};

}  // namespace fastfuse::cpu::FASTFUSE_ISA

#endif
