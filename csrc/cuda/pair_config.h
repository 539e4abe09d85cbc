// Sizes of the kernels that sweep over tiles of pairs, and their map of shared memory.
//
//     warpgroup 0      producer: warp 0 loads features by TMA, warps 1..3 what else is known of columns
//     warpgroups 1, 2  consumers: 64 rows of the tile each
//
//     0      mbarriers
//     1024   A         [kStages][kBlockM][64]   rows of 128 bytes, swizzled: 64 of the features
//            B         [kStages][kBlockN][64]
//            columns   [kColumnStages]: key int64 [kBlockN], skip int64 [kBlockN], values float [kValues][kBlockN],
//                      marked int32 [2], first column int32, first meeting int32
//            exchange  [kConsumers][2][4 warps][kBlockN] float, where the columns have results
#pragma once

#include "cuda/hopper.h"
#include "fastfuse/cuda_pair.h"

namespace fastfuse::cuda {

// Element: bf16 or f16. kValues: floats that a tile's epilogue needs of each column.
template <class Element_, int kValues_, bool kExchange>
struct PairConfig {
  using Element = Element_;
  static constexpr int kValues = kValues_;

  static constexpr int kBlockM = kPairBlockM, kBlockN = kPairBlockN;
  static constexpr int kStep = 64;  // features of a stage
  static constexpr int kStages = 4, kColumnStages = 2;

  static constexpr int kConsumers = 2;  // warpgroups
  static constexpr int kThreads = 128 * (kConsumers + 1);
  static constexpr int kConsumerWarps = 4 * kConsumers;
  static constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;
  static constexpr int kProducts = kBlockN / 2;  // of a consumer's thread
  static constexpr int kExchangeBarrier = 1;     // and 2: of each consumer
  static constexpr int kLeadBarrier = 3;

  static constexpr int kRowBytes = 2 * kStep;
  static constexpr int kABytes = kBlockM * kRowBytes, kBBytes = kBlockN * kRowBytes;
  static constexpr int kColumnBytes = kBlockN * (2 * 8 + 4 * kValues) + 16;
  static constexpr int kExchangeBytes = kExchange ? 2 * 4 * kBlockN * 4 : 0;  // of a warpgroup

  static constexpr int kA = 1024;
  static constexpr int kB = kA + kStages * kABytes;
  static constexpr int kColumns = kB + kStages * kBBytes;
  static constexpr int kExchangeAt = kColumns + kColumnStages * kColumnBytes;
  static constexpr int kSharedBytes = kExchangeAt + kConsumers * kExchangeBytes;
  static_assert(kSharedBytes <= 227 * 1024);
};

// Addresses in shared memory.
template <class C>
struct PairShared {
  uint32_t base;

  FF_DEVICE uint32_t a(int stage) const { return base + C::kA + stage * C::kABytes; }
  FF_DEVICE uint32_t b(int stage) const { return base + C::kB + stage * C::kBBytes; }
  FF_DEVICE uint32_t columns(int stage) const { return base + C::kColumns + stage * C::kColumnBytes; }
  // of: 0 keys, 1 skips
  FF_DEVICE uint32_t label(int stage, int of, int column) const {
    return columns(stage) + (of * C::kBlockN + column) * 8;
  }
  FF_DEVICE uint32_t value(int stage, int which, int column) const {
    return columns(stage) + C::kBlockN * 16 + (which * C::kBlockN + column) * 4;
  }
  FF_DEVICE uint32_t marked(int stage, int of) const { return value(stage, C::kValues, of); }
  // The tile's first column, and whether the block meets its columns for the first time.
  FF_DEVICE uint32_t place(int stage) const { return value(stage, C::kValues, 2); }
  FF_DEVICE int first_column(int stage) const { return hopper::load_shared<int32_t>(place(stage)); }
  FF_DEVICE bool first_meeting(int stage) const { return hopper::load_shared<int32_t>(place(stage) + 4); }
  FF_DEVICE uint32_t exchange(int warpgroup, int plane, int warp, int column) const {
    return base + C::kExchangeAt + warpgroup * C::kExchangeBytes + ((plane * 4 + warp) * C::kBlockN + column) * 4;
  }

  // mbarriers: a stage is full when its data is there, and empty when every consumer's warp is done with it.
  FF_DEVICE uint32_t full(int stage) const { return base + 8 * stage; }
  FF_DEVICE uint32_t empty(int stage) const { return base + 64 + 8 * stage; }
  FF_DEVICE uint32_t columns_full(int stage) const { return base + 128 + 8 * stage; }
  FF_DEVICE uint32_t columns_empty(int stage) const { return base + 192 + 8 * stage; }
};

}  // namespace fastfuse::cuda
