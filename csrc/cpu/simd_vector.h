// One vocabulary of float vectors for every instruction set. Elementary functions are in simd.h.
//
// A kernel header is compiled once per level, in its own namespace, by csrc/cpu/isa_<level>_<family>.cpp:
//
//     #define FASTFUSE_ISA avx512
//     #include "cpu/attention_fwd.h"
//
// and wraps itself in `namespace fastfuse::cpu::FASTFUSE_ISA { ... }`. So the same function compiled with other flags
// has another name. For the same reason kernel headers use nothing inline or templated from std:: (the linker would
// keep one copy for all levels, maybe the one that this machine can not run): use the functions here and __builtin_*.
//
//   vf, vi                                  kLanes floats, int32s
//   splat(x)  load(p)  store(p, v)          load(p, n), store(p, v, n): the first n lanes only
//   load_as_float(T*)  store_as(T*, v)      T = float, bf16, f16, unaligned; also with a lane count
//   stream_as(T*, v)  stream_end()          past the caches, aligned to the vector's bytes; done when stream_end returns
//   fma(a, b, c)                            a * b + c
//   max  min  select(mask, a, b)  reduce_add  reduce_max
//   vf_half, vi_half                        kGrain of them: half a vector, or a whole one; the same names work on them
//   low_half(v)                             the first kGrain lanes
//   vd                                      kHalf doubles; widen(vf_of_vd)
#pragma once

#include <cstddef>
#include <cstdint>

#include "fastfuse/dtype.h"

#if defined(__x86_64__)
// GCC 12 warns about its own undefined operands of unmasked AVX-512 intrinsics.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#ifndef FASTFUSE_ISA
#error "define FASTFUSE_ISA first"
#endif
#define FF_INLINE inline __attribute__((always_inline))
#define FF_LAMBDA __attribute__((always_inline))

namespace fastfuse::cpu::FASTFUSE_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
constexpr int kVectorRegisters = 32;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
constexpr int kVectorRegisters = 16;
#else
constexpr int kLanes = 4;
#if defined(__aarch64__)
constexpr int kVectorRegisters = 32;
#else
constexpr int kVectorRegisters = 16;
#endif
#endif

typedef float vf __attribute__((vector_size(kLanes * 4)));
typedef int32_t vi __attribute__((vector_size(kLanes * 4)));
typedef uint32_t vu __attribute__((vector_size(kLanes * 4)));
typedef uint16_t vh __attribute__((vector_size(kLanes * 2)));  // storage of bf16 and f16

constexpr float kInf = __builtin_inff();
constexpr float kLog2e = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

template <auto kValue>
struct Constant {
  static constexpr auto value = kValue;
};
template <class T>
FF_INLINE constexpr T min_of(T a, T b) {
  return a < b ? a : b;
}
template <class T>
FF_INLINE constexpr T max_of(T a, T b) {
  return a > b ? a : b;
}
FF_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
FF_INLINE int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// N values; a step of a computation runs through all of them in turn, so that the latency of one is hidden by the others
// without a long look ahead.
template <class V, int N>
struct Several {
  V at[N];
};
// body(0), ..., body(N - 1)
template <int N, class Body>
FF_INLINE auto in_step(const Body& body) {
  Several<decltype(body(0)), N> s;
#pragma GCC unroll 8
  for (int i = 0; i < N; i++) s.at[i] = body(i);
  return s;
}

template <class V>
FF_INLINE V splat_as(float x) {
  return x - V{};
}
FF_INLINE vf splat(float x) { return splat_as<vf>(x); }
FF_INLINE vi splat(int32_t x) { return x - vi{}; }
FF_INLINE vi lane_index() {
  vi v;
  for (int i = 0; i < kLanes; i++) v[i] = i;
  return v;
}

template <class V>
FF_INLINE V load_as(const float* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
FF_INLINE vf load(const float* p) { return load_as<vf>(p); }
FF_INLINE vi load(const int32_t* p) {
  vi v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
FF_INLINE void store(float* p, vf v) { __builtin_memcpy(p, &v, sizeof v); }
FF_INLINE void store(int32_t* p, vi v) { __builtin_memcpy(p, &v, sizeof v); }

FF_INLINE vf select(vi mask, vf a, vf b) { return mask ? a : b; }
FF_INLINE vi select(vi mask, vi a, vi b) { return mask ? a : b; }

#if defined(__AVX512F__)
FF_INLINE vf fma(vf a, vf b, vf c) { return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
FF_INLINE vf max(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
FF_INLINE vf min(vf a, vf b) { return (vf)_mm512_min_ps((__m512)a, (__m512)b); }
FF_INLINE float reduce_add(vf v) { return _mm512_reduce_add_ps((__m512)v); }
FF_INLINE float reduce_max(vf v) { return _mm512_reduce_max_ps((__m512)v); }
FF_INLINE __mmask16 lane_mask(int n) { return (__mmask16)((1u << n) - 1); }
FF_INLINE vf load(const float* p, int n) { return (vf)_mm512_maskz_loadu_ps(lane_mask(n), p); }
FF_INLINE void store(float* p, vf v, int n) { _mm512_mask_storeu_ps(p, lane_mask(n), (__m512)v); }
#else
#if defined(__AVX2__)
FF_INLINE vf fma(vf a, vf b, vf c) { return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
FF_INLINE vf max(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }
FF_INLINE vf min(vf a, vf b) { return (vf)_mm256_min_ps((__m256)a, (__m256)b); }
#else
#if defined(__aarch64__)
FF_INLINE vf fma(vf a, vf b, vf c) { return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
#else
FF_INLINE vf fma(vf a, vf b, vf c) { return a * b + c; }  // one rounding or two
#endif
FF_INLINE vf max(vf a, vf b) { return a > b ? a : b; }
FF_INLINE vf min(vf a, vf b) { return a < b ? a : b; }
#endif
FF_INLINE float reduce_add(vf v) {
  float sum = v[0];
  for (int i = 1; i < kLanes; i++) sum += v[i];
  return sum;
}
FF_INLINE float reduce_max(vf v) {
  float top = v[0];
  for (int i = 1; i < kLanes; i++) top = max_of(top, (float)v[i]);
  return top;
}
#if defined(__AVX2__)
FF_INLINE vf load(const float* p, int n) { return (vf)_mm256_maskload_ps(p, (__m256i)(lane_index() < splat(n))); }
#else
FF_INLINE vf load(const float* p, int n) {
  vf v{};
  __builtin_memcpy(&v, p, n * sizeof(float));
  return v;
}
#endif
FF_INLINE void store(float* p, vf v, int n) { __builtin_memcpy(p, &v, n * sizeof(float)); }
#endif

// a * b + c with one rounding on every machine; the product of two floats is exact in double.
#if defined(__FMA__) || defined(__aarch64__)
FF_INLINE vf fma_exact(vf a, vf b, vf c) { return fma(a, b, c); }
#else
FF_INLINE vf fma_exact(vf a, vf b, vf c) {
  vf r;
  for (int i = 0; i < kLanes; i++) r[i] = float(double(a[i]) * double(b[i]) + double(c[i]));
  return r;
}
#endif

// Sum of two floats and what its rounding left out (Knuth's two-sum).
FF_INLINE vf two_sum(vf a, vf b, vf& rest) {
  const vf sum = a + b, part = sum - a;
  rest = (a - (sum - part)) + (b - part);
  return sum;
}

// ---- half vectors, for the last lanes of rows that are no whole vectors ----

// Where a vector has 512 bits, an instruction of 256 takes half its time on some machines (Zen 4) and nowhere more.
// Elsewhere vectors are not halved.
#if defined(__AVX512F__)
constexpr int kGrain = kLanes / 2;  // lanes of the smallest piece of a row
typedef float vf_half __attribute__((vector_size(kGrain * 4)));
typedef int32_t vi_half __attribute__((vector_size(kGrain * 4)));

FF_INLINE vf_half low_half(vf v) { return (vf_half)_mm512_castps512_ps256((__m512)v); }
FF_INLINE void store(float* p, vf_half v) { __builtin_memcpy(p, &v, sizeof v); }
FF_INLINE vf_half select(vi_half mask, vf_half a, vf_half b) { return mask ? a : b; }
FF_INLINE vf_half fma(vf_half a, vf_half b, vf_half c) {
  return (vf_half)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
FF_INLINE vf_half max(vf_half a, vf_half b) { return (vf_half)_mm256_max_ps((__m256)a, (__m256)b); }
#else
constexpr int kGrain = kLanes;
using vf_half = vf;
using vi_half = vi;
FF_INLINE vf low_half(vf v) { return v; }
#endif

// ---- doubles, for sums ----

constexpr int kHalf = kLanes / 2;
typedef double vd __attribute__((vector_size(kHalf * 8)));
typedef float vf_of_vd __attribute__((vector_size(kHalf * 4)));

#if defined(__AVX512F__)
FF_INLINE vd widen(vf_of_vd v) { return (vd)_mm512_cvtps_pd((__m256)v); }
#elif defined(__AVX2__)
FF_INLINE vd widen(vf_of_vd v) { return (vd)_mm256_cvtps_pd((__m128)v); }
#else
FF_INLINE vd widen(vf_of_vd v) { return __builtin_convertvector(v, vd); }
#endif

// ---- conversions ----

// Where AVX2 has an instruction GCC would convert 128 bits at a time.
#if defined(__AVX2__) && !defined(__AVX512F__)
FF_INLINE vu integers(vh h) { return (vu)_mm256_cvtepu16_epi32((__m128i)h); }
FF_INLINE vh halves(vu u) {  // all below 2^16
  return (vh)_mm_packus_epi32(_mm256_castsi256_si128((__m256i)u), _mm256_extracti128_si256((__m256i)u, 1));
}
#else
FF_INLINE vu integers(vh h) { return __builtin_convertvector(h, vu); }
FF_INLINE vh halves(vu u) { return __builtin_convertvector(u, vh); }
#endif

FF_INLINE vf widen(vh h, const bf16*) { return (vf)(integers(h) << 16); }
#if defined(__AVX512BF16__)
FF_INLINE vh narrow(vf v, const bf16*) { return (vh)_mm512_cvtneps_pbh((__m512)v); }
#else
FF_INLINE vh narrow(vf v, const bf16*) {
  const vu u = (vu)v;
  const vu even = (u + 0x7fffu + ((u >> 16) & 1)) >> 16;
  const vu nan = (u >> 16) | 0x40u;
  return halves((vu)select((vi)(v != v), (vi)nan, (vi)even));
}
#endif

#if defined(__AVX512F__)
FF_INLINE vf widen(vh h, const f16*) { return (vf)_mm512_cvtph_ps((__m256i)h); }
FF_INLINE vh narrow(vf v, const f16*) { return (vh)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT); }
#elif defined(__AVX2__)
FF_INLINE vf widen(vh h, const f16*) { return (vf)_mm256_cvtph_ps((__m128i)h); }
FF_INLINE vh narrow(vf v, const f16*) { return (vh)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT); }
#elif defined(__aarch64__)
FF_INLINE vf widen(vh h, const f16*) { return (vf)vcvt_f32_f16((float16x4_t)h); }
FF_INLINE vh narrow(vf v, const f16*) { return (vh)vcvt_f16_f32((float32x4_t)v); }
#else
// The exponent is rebased by a multiplication, which also makes subnormals right.
FF_INLINE vf widen(vh h, const f16*) {
  const vu u = __builtin_convertvector(h, vu), sign = (u & 0x8000u) << 16, rest = (u & 0x7fffu) << 13;
  const vu normal = (vu)((vf)rest * splat(0x1p112f));
  return (vf)(sign | (vu)select((vi)(rest >= 0x0f800000u), (vi)(rest | 0x7f800000u), (vi)normal));
}
FF_INLINE vh narrow(vf v, const f16*) {
  const vu u = (vu)v, sign = (u >> 16) & 0x8000u, a = u & 0x7fffffffu;
  const vu normal = (a + 0xc8000fffu + ((a >> 13) & 1)) >> 13;   // 0xc8000000 = (15 - 127) << 23
  const vu subnormal = (vu)((vf)a + splat(0.5f)) - 0x3f000000u;  // the addition rounds at 2^-24
  const vi special = select((vi)(a > 0x7f800000u), splat(0x7e00), splat(0x7c00));
  vi r = select((vi)(a < 0x38800000u), (vi)subnormal, (vi)normal);
  r = select((vi)(a >= 0x47800000u), special, r);
  return __builtin_convertvector(sign | (vu)r, vh);
}
#endif

FF_INLINE vf load_as_float(const float* p) { return load(p); }
FF_INLINE vf load_as_float(const float* p, int n) { return load(p, n); }
FF_INLINE void store_as(float* p, vf v) { store(p, v); }
FF_INLINE void store_as(float* p, vf v, int n) { store(p, v, n); }
template <class T>
FF_INLINE vf load_as_float(const T* p) {
  vh h;
  __builtin_memcpy(&h, p, sizeof h);
  return widen(h, p);
}
template <class T>
FF_INLINE vf load_as_float(const T* p, int n) {
  vh h{};
  __builtin_memcpy(&h, p, n * sizeof(T));
  return widen(h, p);
}
template <class T>
FF_INLINE void store_as(T* p, vf v) {
  const vh h = narrow(v, p);
  __builtin_memcpy(p, &h, sizeof h);
}
template <class T>
FF_INLINE void store_as(T* p, vf v, int n) {
  const vh h = narrow(v, p);
  __builtin_memcpy(p, &h, n * sizeof(T));
}
#if defined(__AVX512F__)
FF_INLINE void stream_as(float* p, vf v) { _mm512_stream_ps(p, (__m512)v); }
template <class T>
FF_INLINE void stream_as(T* p, vf v) {
  _mm256_stream_si256((__m256i*)p, (__m256i)narrow(v, p));
}
FF_INLINE void stream_end() { _mm_sfence(); }
#else
template <class T>
FF_INLINE void stream_as(T* p, vf v) {
  store_as(p, v);
}
FF_INLINE void stream_end() {}
#endif
FF_INLINE float to_float(float x) { return x; }
template <class T>
FF_INLINE float to_float(T x) {
  return load_as_float(&x, 1)[0];
}

}  // namespace fastfuse::cpu::FASTFUSE_ISA
