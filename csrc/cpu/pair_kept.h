// The products of a forward sweep, kept for the backward: a tile each, in squares of kStrip x kStrip pairs.
//
//   float32 features   the tile as the product left it, [kBlock][kStrip] floats: backward sees the same numbers
//   16-bit features    c_ij as round(c kFixedUnit), [kBlock][kStrip] int16: within 2^-16, so that exp(scale c) is as good
//                      as bfloat16 for |scale| <= kKeptBound. A tile that has positives or hidden pairs, in which
//                      differences must vanish, is marked in `exact` and multiplied again.
//
// Layout: [squares], each [kStrip / kBlock] tiles and for 16 bits as many bytes `exact`, padded to a cache line. Squares
// are those of [strips of rows][strips of columns]; symmetric: those on and above the diagonal.
#pragma once

#include "cpu/pair_features.h"

namespace fastfuse::cpu::FASTFUSE_ISA {

constexpr float kFixedUnit = 32000.0f;  // cosines up to 1.02 fit
constexpr float kKeptBound = 128.0f;
constexpr int64_t kKeptLine = 64;

struct Kept {
  char* data = nullptr;  // null: nothing is kept
  bool fixed = false;    // 16 bits
  bool writes = false;   // else reads
  bool symmetric = false;
  int64_t strips = 0;

  Kept() = default;
  Kept(const PairProblem& p, const void* data, bool writes)
      : data(static_cast<char*>(const_cast<void*>(data))),
        fixed(p.a.dtype != DType::kFloat32),
        writes(writes),
        symmetric(p.symmetric),
        strips(ceil_div(p.b.rows, kStrip)) {}

  // [kStrip / kBlock][kBlock][kStrip] of the square that the tile is in
  char* square(int64_t row, int64_t strip) const {
    const int64_t bytes = kStrip * kStrip * (fixed ? 2 : 4) + (fixed ? kKeptLine : 0), q = row / kStrip;
    return data + (q * strips - (symmetric ? q * (q + 1) / 2 : 0) + strip) * bytes;
  }
  // Tiles; null where they are not kept like this.
  float* floats(int64_t row, int64_t strip) const {
    return data && !fixed ? reinterpret_cast<float*>(square(row, strip)) + row % kStrip * kStrip : nullptr;
  }
  int16_t* cosines(int64_t row, int64_t strip) const {
    return data && fixed ? reinterpret_cast<int16_t*>(square(row, strip)) + row % kStrip * kStrip : nullptr;
  }
  char& exact(int64_t row, int64_t strip) const {
    return square(row, strip)[kStrip * kStrip * sizeof(int16_t) + row % kStrip / kBlock];
  }
  // Whether a tile need not be multiplied again.
  bool serves(int64_t row, int64_t strip) const { return data && !writes && (!fixed || !exact(row, strip)); }
};

// In the low half of the sum's bits is the integer.
FF_INLINE void store_fixed(int16_t* to, vf c) {
  const vu bits = (vu)fma(c, splat(kFixedUnit), splat(0x1.8p23f));
  const vh low = __builtin_convertvector(bits, vh);
  __builtin_memcpy(to, &low, sizeof low);
}

#if defined(__AVX512BF16__)
// The same of two vectors y, which times `unit` are c kFixedUnit.
FF_INLINE void store_fixed(int16_t* to, vf first, vf second, vf unit) {
  const vf magic = splat(0x1.8p23f);
  _mm512_storeu_si512(to, low_words((__m512i)fma(first, unit, magic), (__m512i)fma(second, unit, magic)));
}
#endif

// c kFixedUnit
FF_INLINE vf load_integer(const int16_t* from) {
#if defined(__AVX512F__)
  return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i*)from)));
#else
  vh bits;
  __builtin_memcpy(&bits, from, sizeof bits);
  return __builtin_convertvector((vi)(integers(bits) << 16) >> 16, vf);
#endif
}
FF_INLINE vf load_fixed(const int16_t* from) { return load_integer(from) * splat(1.0f / kFixedUnit); }

}  // namespace fastfuse::cpu::FASTFUSE_ISA
