// Sizes of the backward kernel that owns a key head, and its map of shared memory. Rows of 128 bytes, swizzled.
//
//     warpgroup 0      producer: one thread loads by TMA
//     warpgroups 1, 2  consumers: 64 rows each for S, dP and dQ; 64 keys each for dK and dV
//
//     0      mbarriers
//     1024   K, V    [128][64]
//            Q, dO   [kStages][128][64]
//            P, dS   [2][128][64]        slabs of 64 keys: the keys of a warpgroup
#pragma once

#include "cuda/hopper.h"
#include "cuda/warpgroups.h"

namespace fastfuse::cuda {

template <class Element_>
struct AttentionBwdHeadsConfig : ProducerAndConsumers {
  using Element = Element_;
  static constexpr int kHeadDim = 64;
  static constexpr int kBlockM = 128, kBlockN = 128;
  static constexpr int kStages = 3;

  static constexpr int kTileBytes = 128 * 128;
  static constexpr int kKeys = 1024;
  static constexpr int kValues = kKeys + kTileBytes;
  static constexpr int kQueries = kValues + kTileBytes;
  static constexpr int kDout = kQueries + kStages * kTileBytes;
  static constexpr int kWeights = kDout + kStages * kTileBytes;
  static constexpr int kGradients = kWeights + 2 * kTileBytes;
  static constexpr int kSharedBytes = kGradients + 2 * kTileBytes;
  static_assert(kSharedBytes <= 227 * 1024);
};

template <class C>
struct AttentionBwdHeadsShared {
  uint32_t base;

  FF_DEVICE uint32_t keys() const { return base + C::kKeys; }
  FF_DEVICE uint32_t values() const { return base + C::kValues; }
  FF_DEVICE uint32_t queries(int stage) const { return base + C::kQueries + stage * C::kTileBytes; }
  FF_DEVICE uint32_t dout(int stage) const { return base + C::kDout + stage * C::kTileBytes; }
  FF_DEVICE uint32_t weights() const { return base + C::kWeights; }
  FF_DEVICE uint32_t gradients() const { return base + C::kGradients; }

  // mbarriers: full when the data is there, empty when every consumer's warp is done with it.
  FF_DEVICE uint32_t keys_full() const { return base; }
  FF_DEVICE uint32_t keys_empty() const { return base + 8; }
  FF_DEVICE uint32_t queries_full(int stage) const { return base + 64 + 8 * stage; }
  FF_DEVICE uint32_t queries_empty(int stage) const { return base + 128 + 8 * stage; }
};

}  // namespace fastfuse::cuda
