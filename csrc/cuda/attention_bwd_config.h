// Sizes of the backward's two kernels and their maps of shared memory. Rows of 128 bytes, swizzled; a slab is 64 of the
// head's columns.
//
//     warpgroup 0      producer: one thread loads by TMA; in the keys' kernel warps 2 and 3 fetch what is known of rows
//     warpgroups 1, 2  consumers
//
//     queries' kernel (dq)                                  keys' kernel (dk, dv)
//     0      mbarriers                                      0      mbarriers
//     1024   Q   [kQueryStages][kSlabs][kBlockM][64]        1024   K   [kSlabs][kBlockN][64]
//            dO  [kQueryStages][kSlabs][kBlockM][64]               V   [kSlabs][kBlockN][64]
//            K   [kKeyStages][kSlabs][kBlockN][64]                 Q   [kStages][kSlabs][kBlockM][64]
//            V   [kValueStages][kSlabs][kBlockN][64]               dO  [kStages][kSlabs][kBlockM][64]
//                                                                  rows [kStages][kRowsBytes]
#pragma once

#include "cuda/hopper.h"
#include "cuda/warpgroups.h"

namespace fastfuse::cuda {

// Element: bf16 or f16. kHeadDim: D and Dv, zero-filled up to it. kGeneral: softcap, bias, dropout or a scale that is
// not positive; without, scores are the products themselves.
//
// 128 rows, 64 a warpgroup; dQ, S, dP and softcap's slope of a row fill the registers.
template <class Element_, int kHeadDim_, bool kGeneral_>
struct AttentionBwdQueriesConfig : ProducerAndConsumers {
  using Element = Element_;
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr bool kGeneral = kGeneral_;

  static constexpr int kBlockM = 128;
  static constexpr int kBlockN = (kHeadDim <= 128 ? 128 : 64) / (kGeneral ? 2 : 1);
  static constexpr int kQueryStages = kHeadDim == 64 ? 2 : 1;
  static constexpr int kKeyStages = 2, kValueStages = kHeadDim <= 128 ? 2 : 1;
  static constexpr int kSlabs = kHeadDim / 64;

  static constexpr int kQuerySlabBytes = kBlockM * 128, kKeySlabBytes = kBlockN * 128;
  static constexpr int kQueryBytes = kSlabs * kQuerySlabBytes, kKeyBytes = kSlabs * kKeySlabBytes;

  static constexpr int kQueries = 1024;
  static constexpr int kDout = kQueries + kQueryStages * kQueryBytes;
  static constexpr int kKeys = kDout + kQueryStages * kQueryBytes;
  static constexpr int kValues = kKeys + kKeyStages * kKeyBytes;
  static constexpr int kSharedBytes = kValues + kValueStages * kKeyBytes;
  static_assert(kSharedBytes <= 227 * 1024);
};

template <class C>
struct AttentionBwdQueriesShared {
  uint32_t base;

  FF_DEVICE uint32_t queries(int stage) const { return base + C::kQueries + stage * C::kQueryBytes; }
  FF_DEVICE uint32_t dout(int stage) const { return base + C::kDout + stage * C::kQueryBytes; }
  FF_DEVICE uint32_t keys(int stage) const { return base + C::kKeys + stage * C::kKeyBytes; }
  FF_DEVICE uint32_t values(int stage) const { return base + C::kValues + stage * C::kKeyBytes; }

  // mbarriers: a stage is full when its data is there, and empty when every consumer's warp is done with it.
  FF_DEVICE uint32_t queries_full(int stage) const { return base + 8 * stage; }
  FF_DEVICE uint32_t queries_empty(int stage) const { return base + 8 * (C::kQueryStages + stage); }
  FF_DEVICE uint32_t keys_full(int stage) const { return base + 64 + 8 * stage; }
  FF_DEVICE uint32_t keys_empty(int stage) const { return base + 64 + 8 * (C::kKeyStages + stage); }
  FF_DEVICE uint32_t values_full(int stage) const { return base + 128 + 8 * stage; }
  FF_DEVICE uint32_t values_empty(int stage) const { return base + 128 + 8 * (C::kValueStages + stage); }
};

// Up to 128 columns: 128 keys, 64 a warpgroup. Beyond, dK and dV of 64 keys fill both warpgroups' registers: each
// makes the same scores and sums half of the columns.
template <class Element_, int kHeadDim_, bool kGeneral_>
struct AttentionBwdKeysConfig : ProducerAndConsumers {
  using Element = Element_;
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr bool kGeneral = kGeneral_;

  static constexpr int kShares = kHeadDim <= 128 ? 1 : 2;  // warpgroups that share keys and part columns
  static constexpr int kColumns = kHeadDim / kShares;
  static constexpr int kBlockN = 128 / kShares;
  static constexpr int kBlockM = 64;
  static constexpr int kStages = 2;
  static constexpr bool kRoomy = kHeadDim == 64 && !kGeneral;  // registers last for dP beside S, and for gates of 1
  static constexpr int kSlabs = kHeadDim / 64;

  static constexpr int kQuerySlabBytes = kBlockM * 128, kKeySlabBytes = kBlockN * 128;
  static constexpr int kQueryBytes = kSlabs * kQuerySlabBytes, kKeyBytes = kSlabs * kKeySlabBytes;

  // Of each pair of rows 16 bytes: two numbers of one row each, twice.
  static constexpr int kLse = 0;                       // lse, lse, lse_rest, lse_rest
  static constexpr int kCenter = kLse + 8 * kBlockM;   // center, center, offset, offset
  static constexpr int kSees = kCenter + 8 * kBlockM;  // lo, lo, hi, hi
  static constexpr int kPlace = kSees + 8 * kBlockM;   // query, query, head, head
  static constexpr int kOpen = kPlace + 8 * kBlockM;   // float each
  static constexpr int kAllSee = kOpen + 4 * kBlockM;  // int: whether all rows see all keys of the tile
  static constexpr int kRowsBytes = kAllSee + 16;

  static constexpr int kKeys = 1024;
  static constexpr int kValues = kKeys + kKeyBytes;
  static constexpr int kQueries = kValues + kKeyBytes;
  static constexpr int kDout = kQueries + kStages * kQueryBytes;
  static constexpr int kRows = kDout + kStages * kQueryBytes;
  static constexpr int kSharedBytes = kRows + kStages * kRowsBytes;
  static_assert(kSharedBytes <= 227 * 1024);
};

template <class C>
struct AttentionBwdKeysShared {
  uint32_t base;

  FF_DEVICE uint32_t keys() const { return base + C::kKeys; }
  FF_DEVICE uint32_t values() const { return base + C::kValues; }
  FF_DEVICE uint32_t queries(int stage) const { return base + C::kQueries + stage * C::kQueryBytes; }
  FF_DEVICE uint32_t dout(int stage) const { return base + C::kDout + stage * C::kQueryBytes; }
  FF_DEVICE uint32_t rows(int stage) const { return base + C::kRows + stage * C::kRowsBytes; }

  FF_DEVICE uint32_t keys_full() const { return base; }
  FF_DEVICE uint32_t queries_full(int stage) const { return base + 64 + 8 * stage; }
  FF_DEVICE uint32_t queries_empty(int stage) const { return base + 64 + 8 * (C::kStages + stage); }
};

}  // namespace fastfuse::cuda
