// AVX-512, AVX-512-BF16 and AMX in plain C++ over AVX2: the intrinsics that csrc/cpu uses of them, lane by lane as the
// manual tells. Included before everything else of a level's sources (tests/emulated_isa.py), so that every level runs on
// any machine with AVX2. FASTFUSE_EMULATED_LEVEL: 1 AVX-512, 2 and AVX-512-BF16, 3 and AMX.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace fastfuse::x86 {

template <class T, int kCount>
struct Lanes {
  T at[kCount];
};
template <class T, class Vector>
using LanesOf = Lanes<T, sizeof(Vector) / sizeof(T)>;

template <class To, class From>
To as(const From& x) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &x, sizeof(to));
  return to;
}

// f(i) for each lane of T.
template <class T, class Vector, class Function>
Vector each(const Function& f) {
  LanesOf<T, Vector> lanes;
  for (int i = 0; i < int(sizeof(Vector) / sizeof(T)); i++) lanes.at[i] = T(f(i));
  return as<Vector>(lanes);
}
template <class T, class Vector>
T lane(const Vector& x, int i) {
  T value;
  std::memcpy(&value, reinterpret_cast<const char*>(&x) + i * sizeof(T), sizeof(T));
  return value;
}

// An AVX2 operation on both halves.
template <class Function>
__m512 halves(const Function& f) {
  return as<__m512>(Lanes<__m256, 2>{f(0), f(1)});
}
inline __m256 half(__m512 x, int i) { return lane<__m256>(x, i); }

inline __m512 fmadd(__m512 a, __m512 b, __m512 c) {
  return halves([&](int i) { return _mm256_fmadd_ps(half(a, i), half(b, i), half(c, i)); });
}
inline __m512 max(__m512 a, __m512 b) {
  return halves([&](int i) { return _mm256_max_ps(half(a, i), half(b, i)); });
}
inline __m512 min(__m512 a, __m512 b) {
  return halves([&](int i) { return _mm256_min_ps(half(a, i), half(b, i)); });
}
inline float reduce_add(__m512 x) {
  auto sums = as<Lanes<float, 16>>(x);
  for (int n = 8; n > 0; n /= 2)
    for (int i = 0; i < n; i++) sums.at[i] += sums.at[i + n];
  return sums.at[0];
}
inline float reduce_max(__m512 x) {
  float most = lane<float>(x, 0);
  for (int i = 1; i < 16; i++) most = lane<float>(x, i) > most ? lane<float>(x, i) : most;
  return most;
}

inline __m512i load(const void* p) {
  __m512i x;
  std::memcpy(&x, p, sizeof(x));
  return x;
}
template <class Vector>
void store(void* p, Vector x) {
  std::memcpy(p, &x, sizeof(x));
}
// Lanes whose bit is 0 are not read: they may lie beyond the end.
template <class T, class Vector>
Vector masked_load(uint32_t mask, const void* p) {
  return each<T, Vector>([&](int i) {
    T value{};
    if (mask >> i & 1) std::memcpy(&value, static_cast<const char*>(p) + i * sizeof(T), sizeof(T));
    return value;
  });
}
inline void masked_store(void* p, uint32_t mask, __m512 x) {
  for (int i = 0; i < 16; i++) {
    const float value = lane<float>(x, i);
    if (mask >> i & 1) std::memcpy(static_cast<char*>(p) + 4 * i, &value, 4);
  }
}

// x - x rounded: down, or to the nearest.
template <class Vector>
Vector reduce(Vector x, int rounding) {
  return each<float, Vector>([&](int i) {
    const float value = lane<float>(x, i);
    if (std::isinf(value)) return 0.0f;
    return value - (rounding & 1 ? std::floor(value) : std::nearbyint(value));
  });
}
// x 2^floor(power)
template <class Vector>
Vector scalef(Vector x, Vector power) {
  return each<float, Vector>([&](int i) {
    const float value = lane<float>(x, i), exponent = std::floor(lane<float>(power, i));
    if (std::isnan(exponent)) return exponent;
    return std::ldexp(value, exponent > 1000 ? 1000 : exponent < -1000 ? -1000 : int(exponent));
  });
}
// To 14 bits.
inline __m512 reciprocal14(__m512 x) {
  return each<float, __m512>([&](int i) {
    const float exact = 1 / lane<float>(x, i);
    return std::isfinite(exact) ? as<float>((as<uint32_t>(exact) + 0x100) & ~0x1ffu) : exact;
  });
}

template <class T>
__m512i blend(uint32_t mask, __m512i a, __m512i b) {
  return each<T, __m512i>([&](int i) { return mask >> i & 1 ? lane<T>(b, i) : lane<T>(a, i); });
}
template <class T>
__m512i shift_right(__m512i x, int bits) {
  return each<T, __m512i>([&](int i) { return lane<T>(x, i) >> bits; });
}
template <class T>
__m512i fill(T value) {
  return each<T, __m512i>([&](int) { return value; });
}
inline __m512i permute(__m512i a, __m512i index, __m512i b) {
  return each<uint16_t, __m512i>([&](int i) {
    const int from = lane<uint16_t>(index, i) & 63;
    return from < 32 ? lane<uint16_t>(a, from) : lane<uint16_t>(b, from - 32);
  });
}
// Of each 128 bits the lower or upper four, a and b in turn.
inline __m512i unpack(__m512i a, __m512i b, int upper) {
  return each<uint16_t, __m512i>(
      [&](int i) { return lane<uint16_t>(i % 2 ? b : a, i / 8 * 8 + 4 * upper + i % 8 / 2); });
}
inline __m512i add16(__m512i a, __m512i b) {
  return each<uint16_t, __m512i>([&](int i) { return lane<uint16_t>(a, i) + lane<uint16_t>(b, i); });
}
inline __m512i multiply32(__m512i a, __m512i b) {
  return each<uint64_t, __m512i>([&](int i) { return uint64_t(lane<uint32_t>(a, 2 * i)) * lane<uint32_t>(b, 2 * i); });
}
template <class... Values>
__m512i set16(Values... last_first) {
  const int values[] = {int(last_first)...};
  return each<int16_t, __m512i>([&](int i) { return values[31 - i]; });
}
inline uint32_t signs(__m512i x) {
  uint32_t mask = 0;
  for (int i = 0; i < 16; i++) mask |= uint32_t(lane<int32_t>(x, i) < 0) << i;
  return mask;
}

inline __m512 widen_half(__m256i x) {
  return halves([&](int i) { return _mm256_cvtph_ps(lane<__m128i>(x, i)); });
}
inline __m256i narrow_half(__m512 x) {
  return as<__m256i>(Lanes<__m128i, 2>{_mm256_cvtps_ph(half(x, 0), 0), _mm256_cvtps_ph(half(x, 1), 0)});
}
inline __m512d widen_float(__m256 x) {
  return each<double, __m512d>([&](int i) { return lane<float>(x, i); });
}
inline __m512 from_int32(__m512i x) {
  return each<float, __m512>([&](int i) { return lane<int32_t>(x, i); });
}
inline __m512i widen_int16(__m256i x) {
  return each<int32_t, __m512i>([&](int i) { return lane<int16_t>(x, i); });
}

// bfloat16's instructions take numbers too small to be normal for 0, and leave none.
inline float normal(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? 0.0f : x; }
inline float widen_bf16(uint16_t x) { return normal(as<float>(uint32_t(x) << 16)); }
inline uint16_t narrow_bf16(float x) {
  const uint32_t bits = as<uint32_t>(normal(x));
  return uint16_t(std::isnan(x) ? bits >> 16 | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline __m256i narrow_bf16(__m512 x) {
  return each<uint16_t, __m256i>([&](int i) { return narrow_bf16(lane<float>(x, i)); });
}
inline float add_products(float sum, uint16_t a, uint16_t b) {
  return normal(std::fma(widen_bf16(a), widen_bf16(b), normal(sum)));
}
template <class Vector, class Pairs>
Vector dot_pairs(Vector sum, Pairs a, Pairs b) {
  return each<float, Vector>([&](int i) {
    const auto product = [&](float s, int k) { return add_products(s, lane<uint16_t>(a, k), lane<uint16_t>(b, k)); };
    return product(product(lane<float>(sum, i), 2 * i + 1), 2 * i);
  });
}

// A register of AMX: rows of so many bytes.
struct Tile {
  int rows, bytes;
  uint8_t data[16][64];
};
inline thread_local Tile tiles[8];

inline void configure_tiles(const void* config) {
  const auto* bytes = static_cast<const uint8_t*>(config);
  for (int t = 0; t < 8; t++) tiles[t] = {bytes[48 + t], bytes[16 + 2 * t] | bytes[17 + 2 * t] << 8, {}};
}
inline void load_tile(int t, const void* p, int64_t stride) {
  for (int r = 0; r < tiles[t].rows; r++)
    std::memcpy(tiles[t].data[r], static_cast<const char*>(p) + r * stride, tiles[t].bytes);
}
inline void store_tile(int t, void* p, int64_t stride) {
  for (int r = 0; r < tiles[t].rows; r++)
    std::memcpy(static_cast<char*>(p) + r * stride, tiles[t].data[r], tiles[t].bytes);
}
inline void clear_tile(int t) { std::memset(tiles[t].data, 0, sizeof(tiles[t].data)); }
// c[m][n] += the products of pairs a[m][k] b[k][n].
inline void multiply_tiles(int c, int a, int b) {
  for (int m = 0; m < tiles[c].rows; m++) {
    for (int n = 0; n < tiles[c].bytes / 4; n++) {
      float sum;
      std::memcpy(&sum, tiles[c].data[m] + 4 * n, 4);
      for (int k = 0; k < tiles[a].bytes / 4; k++) {
        uint16_t left[2], right[2];
        std::memcpy(left, tiles[a].data[m] + 4 * k, 4);
        std::memcpy(right, tiles[b].data[k] + 4 * n, 4);
        for (int i = 0; i < 2; i++) sum = add_products(sum, left[i], right[i]);
      }
      std::memcpy(tiles[c].data[m] + 4 * n, &sum, 4);
    }
  }
}

}  // namespace fastfuse::x86

// Some of these are macros where the compiler does not optimise.
#undef _mm512_reduce_ps
#undef _mm256_reduce_ps
#undef _mm512_scalef_ps
#undef _mm256_scalef_ps
#undef _mm512_cvtps_ph
#undef _mm512_srli_epi32
#undef _mm512_srli_epi64
#undef _tile_loadconfig
#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#undef _tile_release

#define __AVX512F__ 1
#define _mm512_fmadd_ps fastfuse::x86::fmadd
#define _mm512_max_ps fastfuse::x86::max
#define _mm512_min_ps fastfuse::x86::min
#define _mm512_reduce_add_ps fastfuse::x86::reduce_add
#define _mm512_reduce_max_ps fastfuse::x86::reduce_max
#define _mm512_loadu_si512 fastfuse::x86::load
#define _mm512_storeu_si512 fastfuse::x86::store
#define _mm512_stream_ps fastfuse::x86::store
#define _mm512_maskz_loadu_ps fastfuse::x86::masked_load<float, __m512>
#define _mm512_maskz_loadu_epi16 fastfuse::x86::masked_load<uint16_t, __m512i>
#define _mm512_mask_storeu_ps fastfuse::x86::masked_store
#define _mm512_reduce_ps fastfuse::x86::reduce
#define _mm256_reduce_ps fastfuse::x86::reduce
#define _mm512_scalef_ps fastfuse::x86::scalef
#define _mm256_scalef_ps fastfuse::x86::scalef
#define _mm512_rcp14_ps fastfuse::x86::reciprocal14
#define _mm512_mask_blend_epi32 fastfuse::x86::blend<uint32_t>
#define _mm512_mask_blend_epi16 fastfuse::x86::blend<uint16_t>
#define _mm512_srli_epi32 fastfuse::x86::shift_right<uint32_t>
#define _mm512_srli_epi64 fastfuse::x86::shift_right<uint64_t>
#define _mm512_setzero_si512() fastfuse::x86::fill<int32_t>(0)
#define _mm512_set1_epi32 fastfuse::x86::fill<int32_t>
#define _mm512_set1_epi16 fastfuse::x86::fill<int16_t>
#define _mm512_set_epi16 fastfuse::x86::set16
#define _mm512_permutex2var_epi16 fastfuse::x86::permute
#define _mm512_unpacklo_epi16(a, b) fastfuse::x86::unpack(a, b, 0)
#define _mm512_unpackhi_epi16(a, b) fastfuse::x86::unpack(a, b, 1)
#define _mm512_add_epi16 fastfuse::x86::add16
#define _mm512_mul_epu32 fastfuse::x86::multiply32
#define _mm512_movepi32_mask fastfuse::x86::signs
#define _mm512_cvtph_ps fastfuse::x86::widen_half
#define _mm512_cvtps_ph(x, rounding) fastfuse::x86::narrow_half(x)
#define _mm512_cvtps_pd fastfuse::x86::widen_float
#define _mm512_cvtepi32_ps fastfuse::x86::from_int32
#define _mm512_cvtepi16_epi32 fastfuse::x86::widen_int16
#define _mm512_castps512_ps256(x) fastfuse::x86::half(x, 0)
#if FASTFUSE_EMULATED_LEVEL >= 2
#define __AVX512BF16__ 1
#define _mm512_cvtneps_pbh fastfuse::x86::narrow_bf16
#define _mm512_dpbf16_ps fastfuse::x86::dot_pairs
#define _mm256_dpbf16_ps fastfuse::x86::dot_pairs
#endif
#if FASTFUSE_EMULATED_LEVEL >= 3
#define __AMX_BF16__ 1
#define _tile_loadconfig fastfuse::x86::configure_tiles
#define _tile_loadd fastfuse::x86::load_tile
#define _tile_stored fastfuse::x86::store_tile
#define _tile_zero fastfuse::x86::clear_tile
#define _tile_dpbf16ps fastfuse::x86::multiply_tiles
#define _tile_release() (void)0
#endif
