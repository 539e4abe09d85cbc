// Sizes of the forward kernel and its map of shared memory.
//
//     warpgroup 0      producer: warp 0 loads K and V by TMA, warps 1..3 gather Q
//     warpgroups 1, 2  consumers: 64 rows each
//
//     0      mbarriers
//     1024   Q   [kQueryStages][kSlabs][kBlockM][64]   rows of 128 bytes, swizzled; a slab is 64 of the head's columns
//            K   [kStages][kSlabs][kBlockN][64]
//            V   [kStages][kSlabs][kBlockN][64]
#pragma once

#include "cuda/hopper.h"

namespace fastfuse::cuda {

// Element: bf16 or f16. kHeadDim: D and Dv, zero-filled up to it. kGeneral: softcap, bias, dropout or a scale that is
// not positive; without, scores are the products themselves.
template <class Element_, int kHeadDim_, bool kGeneral_>
struct AttentionFwdConfig {
  using Element = Element_;
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr bool kGeneral = kGeneral_;

  static constexpr int kBlockM = 128;
  static constexpr int kBlockN = kHeadDim <= 128 ? 128 : kHeadDim <= 192 ? 112 : kGeneral ? 48 : 64;
  static constexpr int kTail = 16, kLongTail = kBlockN > 80 ? 80 : 32;  // of a last block that is not full
  static constexpr int kStages = 2;
  static constexpr int kQueryStages = kHeadDim <= 128 ? 2 : 1;
  static constexpr int kSlabs = kHeadDim / 64;

  static constexpr int kConsumers = 2;  // warpgroups
  static constexpr int kThreads = 128 * (kConsumers + 1);
  static constexpr int kConsumerWarps = 4 * kConsumers;
  static constexpr int kQueryThreads = 96;
  // What neither side spills with; together no more than the block starts with.
  static constexpr int kProducerRegisters = kHeadDim <= 128 ? 40 : 24;
  static constexpr int kConsumerRegisters = kHeadDim <= 128 ? 232 : 240;

  static constexpr int kSlabRowBytes = 128;
  static constexpr int kQuerySlabBytes = kBlockM * kSlabRowBytes, kKeySlabBytes = kBlockN * kSlabRowBytes;
  static constexpr int kQueryBytes = kSlabs * kQuerySlabBytes, kKeyBytes = kSlabs * kKeySlabBytes;

  static constexpr int kQueries = 1024;
  static constexpr int kKeys = kQueries + kQueryStages * kQueryBytes;
  static constexpr int kValues = kKeys + kStages * kKeyBytes;
  static constexpr int kSharedBytes = kValues + kStages * kKeyBytes;
  static_assert(kSharedBytes <= 227 * 1024);
};

// Addresses in shared memory.
template <class C>
struct AttentionFwdShared {
  uint32_t base;

  FF_DEVICE uint32_t queries(int stage) const { return base + C::kQueries + stage * C::kQueryBytes; }
  FF_DEVICE uint32_t keys(int stage) const { return base + C::kKeys + stage * C::kKeyBytes; }
  FF_DEVICE uint32_t values(int stage) const { return base + C::kValues + stage * C::kKeyBytes; }

  // mbarriers: a stage is full when its data is there, and empty when every consumer's warp is done with it.
  FF_DEVICE uint32_t queries_full(int stage) const { return base + 8 * stage; }
  FF_DEVICE uint32_t queries_empty(int stage) const { return base + 8 * (C::kQueryStages + stage); }
  FF_DEVICE uint32_t keys_full(int stage) const { return base + 64 + 8 * stage; }
  FF_DEVICE uint32_t keys_empty(int stage) const { return base + 64 + 8 * (C::kStages + stage); }
  FF_DEVICE uint32_t values_full(int stage) const { return base + 128 + 8 * stage; }
  FF_DEVICE uint32_t values_empty(int stage) const { return base + 128 + 8 * (C::kStages + stage); }
};

}  // namespace fastfuse::cuda
