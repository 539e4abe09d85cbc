// Elementary functions of the float vectors of simd_vector.h, which this includes.
//
//   exp2(x)  exp2_short(x)   relative error 1e-7, 1e-4; exp2(-inf) = 0, no NaN for x <= 127; vf, and vf_half if another
//   tanh(x)                  vf or float
//   add_log(base, x, rest)   base + ln(x) as two floats
#pragma once

#include "cpu/simd_vector.h"

namespace fastfuse::cpu::FASTFUSE_ISA {

// 2^f on [0, 1): minimax fits with 2^0 = 1, relative error 2e-9 before rounding (degree 6) and 8.6e-5 (degree 3). That
// exp2(0) is exactly 1 makes the softmax of a single key exactly 1, and its gradient exactly 0.
template <class V>
FF_INLINE V exp2_polynomial(V f) {
  V p = splat_as<V>(2.161292516e-4f);
  p = fma(p, f, splat_as<V>(1.246784377e-3f));
  p = fma(p, f, splat_as<V>(9.675451825e-3f));
  p = fma(p, f, splat_as<V>(5.548528051e-2f));
  p = fma(p, f, splat_as<V>(2.402293056e-1f));
  p = fma(p, f, splat_as<V>(6.931470444e-1f));
  return fma(p, f, splat_as<V>(1.0f));
}
template <class V>
FF_INLINE V exp2_polynomial_short(V f) {
  V p = splat_as<V>(7.706715863e-2f);
  p = fma(p, f, splat_as<V>(2.276448642e-1f));
  p = fma(p, f, splat_as<V>(6.951168150e-1f));
  return fma(p, f, splat_as<V>(1.0f));
}

#if defined(__AVX512F__)
FF_INLINE vf fraction(vf x) { return (vf)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
FF_INLINE vf scale_by_floor(vf p, vf x) { return (vf)_mm512_scalef_ps((__m512)p, (__m512)x); }  // p * 2^floor(x)
FF_INLINE vf_half fraction(vf_half x) {
  return (vf_half)_mm256_reduce_ps((__m256)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
}
FF_INLINE vf_half scale_by_floor(vf_half p, vf_half x) { return (vf_half)_mm256_scalef_ps((__m256)p, (__m256)x); }
template <class V>
FF_INLINE V exp2(V x) {
  return scale_by_floor(exp2_polynomial(fraction(x)), x);
}
template <class V>
FF_INLINE V exp2_short(V x) {
  return scale_by_floor(exp2_polynomial_short(fraction(x)), x);
}
#else
#if defined(__AVX2__)
FF_INLINE vf floor(vf x) { return (vf)_mm256_floor_ps((__m256)x); }
#else
FF_INLINE vf floor(vf x) {  // |x| < 2^22
  const vf t = (x + splat(0x1.8p23f)) - splat(0x1.8p23f);
  return t - select((vi)(t > x), splat(1.0f), vf{});
}
#endif
// p 2^whole for p near 1 and whole numbers from kLeast on, which is small enough: exactly 1 times it has the bits of 0. Up to
// -126 results may be subnormal and not very exact. A NaN passes at_least, whose operands are in the order that keeps it.
constexpr float kLeast = -127;
FF_INLINE vf at_least(float low, vf x) { return max(splat(low), x); }
FF_INLINE vf scale_by(vf p, vf whole) { return (vf)((vi)p + (__builtin_convertvector(whole, vi) << 23)); }

template <bool kShort>
FF_INLINE vf exp2_of(vf x) {
  const vf clamped = at_least(kLeast, x), whole = floor(clamped), f = clamped - whole;
  return scale_by(kShort ? exp2_polynomial_short(f) : exp2_polynomial(f), whole);
}
FF_INLINE vf exp2(vf x) { return exp2_of<false>(x); }
FF_INLINE vf exp2_short(vf x) { return exp2_of<true>(x); }
#endif

// 1 - 2 / (exp(2|x|) + 1), and an odd polynomial below 0.5 where that would cancel.
FF_INLINE vf tanh(vf x) {
  const vf a = (vf)((vi)x & 0x7fffffff), t = min(a, splat(20.0f)), s = t * t;
  const vf far = splat(1.0f) - splat(2.0f) / (exp2(t * splat(2 * kLog2e)) + splat(1.0f));
  vf p = splat(1.744774565e-2f);
  p = fma(p, s, splat(-5.313441627e-2f));
  p = fma(p, s, splat(1.332701241e-1f));
  p = fma(p, s, splat(-3.333318370e-1f));
  const vf near = fma(p * s, t, t);
  const vf y = select((vi)(t < splat(0.5f)), near, far);
  return (vf)((vi)y | ((vi)x & (int32_t)0x80000000));
}

// base + ln(x) as two floats, good to some 2^-48 of base; normal x > 0, other lanes are undefined.
// x = 2^e m with m in [2/3, 4/3); ln(m) = 2 atanh((m - 1) / (m + 1)); ln 2 in two parts, so that e times the first is exact.
FF_INLINE vf add_log(vf base, vf x, vf& rest) {
  constexpr float kLn2High = 0x1.62e3p-1f, kLn2Low = 9.0580006145e-6f;
  const vi e = ((vi)x - 0x3f2aaaab) >> 23;
  const vf m = (vf)((vi)x - (e << 23)), t = (m - splat(1.0f)) / (m + splat(1.0f)), s = t * t;
  vf p = splat(2.0f / 9);
  p = fma(p, s, splat(2.0f / 7));
  p = fma(p, s, splat(2.0f / 5));
  p = fma(p, s, splat(2.0f / 3));
  p = fma(p, s, splat(2.0f));
  const vf whole = __builtin_convertvector(e, vf);
  vf lost;
  const vf sum = two_sum(base, whole * splat(kLn2High), lost);
  const vf log = two_sum(sum, fma(whole, splat(kLn2Low), p * t), rest);
  rest += lost;
  return log;
}

FF_INLINE float tanh(float x) { return __builtin_tanhf(x); }

}  // namespace fastfuse::cpu::FASTFUSE_ISA
