// Sizes of the decode kernel and its map of shared memory. Two blocks share a multiprocessor up to 128 columns.
//
//     warps 0..3   consumers: a warpgroup with all rows of a key head
//     warp 4       producer: one thread loads K and V by TMA
//
//     0      mbarriers
//     1024   Q   [kSlabs][kBlockM][64]            rows of 128 bytes, swizzled; a slab is 64 of the head's columns
//            K   [kStages][kSlabs][kBlockN][64]
//            V   [kStages][kSlabs][kBlockN][64]
#pragma once

#include "cuda/hopper.h"

namespace fastfuse::cuda {

template <class Element_, int kHeadDim_>
struct AttentionDecodeConfig {
  using Element = Element_;
  static constexpr int kHeadDim = kHeadDim_;

  static constexpr int kBlockM = 64, kBlockN = 64;
  static constexpr int kStages = kHeadDim == 64 ? 5 : kHeadDim == 128 ? 3 : 2;
  static constexpr int kSlabs = kHeadDim / 64;
  static constexpr int kConsumerThreads = 128, kConsumerWarps = 4;
  static constexpr int kThreads = kConsumerThreads + 32;

  static constexpr int kSlabBytes = kBlockN * 128;
  static constexpr int kTileBytes = kSlabs * kSlabBytes;

  static constexpr int kQueries = 1024;
  static constexpr int kKeys = kQueries + kTileBytes;
  static constexpr int kValues = kKeys + kStages * kTileBytes;
  static constexpr int kSharedBytes = kValues + kStages * kTileBytes;
  static_assert(kSharedBytes <= (kHeadDim <= 128 ? 113 : 227) * 1024);
};

template <class C>
struct AttentionDecodeShared {
  uint32_t base;

  FF_DEVICE uint32_t queries() const { return base + C::kQueries; }
  FF_DEVICE uint32_t keys(int stage) const { return base + C::kKeys + stage * C::kTileBytes; }
  FF_DEVICE uint32_t values(int stage) const { return base + C::kValues + stage * C::kTileBytes; }

  // mbarriers: a stage is full when its data is there, and empty when every consumer's warp is done with it.
  FF_DEVICE uint32_t keys_full(int stage) const { return base + 8 * stage; }
  FF_DEVICE uint32_t keys_empty(int stage) const { return base + 64 + 8 * stage; }
  FF_DEVICE uint32_t values_full(int stage) const { return base + 128 + 8 * stage; }
  FF_DEVICE uint32_t values_empty(int stage) const { return base + 192 + 8 * stage; }
};

}  // namespace fastfuse::cuda
