// Sizes of the map kernel and its map of shared memory.
//
//     warpgroup 0      producer: one thread loads by TMA
//     warpgroups 1, 2  consumers: 64 queries each
//
//     0      mbarriers
//     256    sums   float [kConsumerWarps][kBlockN]: keys' sums of each warp
//     8192   Q      [kStages][kSlabs][kBlockM][64]   rows of 128 bytes, swizzled; a slab is 64 of the head's columns
//            K      [kStages][kSlabs][kBlockN][64]
#pragma once

#include "cuda/hopper.h"
#include "cuda/warpgroups.h"

namespace fastfuse::cuda {

template <class Element_, int kHeadDim_>
struct AttentionMapConfig : ProducerAndConsumers {
  using Element = Element_;
  static constexpr int kHeadDim = kHeadDim_;

  static constexpr int kBlockM = 128;
  static constexpr int kBlockN = kHeadDim <= 128 ? 128 : 64;
  static constexpr int kStages = 2;
  static constexpr int kSlabs = kHeadDim / 64;

  static constexpr int kQuerySlabBytes = kBlockM * 128, kKeySlabBytes = kBlockN * 128;
  static constexpr int kQueryBytes = kSlabs * kQuerySlabBytes, kKeyBytes = kSlabs * kKeySlabBytes;

  static constexpr int kSums = 256;
  static constexpr int kQueries = 8192;
  static constexpr int kKeys = kQueries + kStages * kQueryBytes;
  static constexpr int kSharedBytes = kKeys + kStages * kKeyBytes;
  static_assert(kSums + kConsumerWarps * kBlockN * 4 <= kQueries && kSharedBytes <= 227 * 1024);
};

template <class C>
struct AttentionMapShared {
  uint32_t base;

  FF_DEVICE uint32_t queries(int stage) const { return base + C::kQueries + stage * C::kQueryBytes; }
  FF_DEVICE uint32_t keys(int stage) const { return base + C::kKeys + stage * C::kKeyBytes; }
  FF_DEVICE uint32_t sum(int warp, int key) const { return base + C::kSums + uint32_t(warp * C::kBlockN + key) * 4; }

  // mbarriers: a stage is full when its data is there, and empty when every consumer's warp is done with it.
  FF_DEVICE uint32_t full(int stage) const { return base + 8 * stage; }
  FF_DEVICE uint32_t empty(int stage) const { return base + 8 * (C::kStages + stage); }
};

}  // namespace fastfuse::cuda
