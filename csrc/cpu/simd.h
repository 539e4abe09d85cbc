// Elementary functions of the float vectors of simd_vector.h, which this includes.
//
//   exp2(x)  exp2<true>(x)   relative error 1e-7, 1e-4 (AVX-512 only); exp2(-inf) = 0, no NaN for x <= 127; vf, vf_half if
//                            another, and several of them in step
//   tanh(x)                  vf or float
//   add_log(base, x, rest)   base + ln(x) as two floats
#pragma once

#include "cpu/simd_vector.h"

namespace fastfuse::cpu::FASTFUSE_ISA {

// c[0] f^(n - 1) + ... + c[n - 1]
template <int n, class V, int N>
FF_INLINE Several<V, N> polynomial(const float (&c)[n], const Several<V, N>& f) {
  Several<V, N> p = in_step<N>([&](int) FF_LAMBDA { return splat_as<V>(c[0]); });
#pragma GCC unroll 8
  for (int k = 1; k < n; k++) {
    p = in_step<N>([&](int i) FF_LAMBDA { return fma(p.at[i], f.at[i], splat_as<V>(c[k])); });
  }
  return p;
}

// (2^f - 1) / f. Without its 1 a fit of 2^f is exact at 0: the softmax of a single key is exactly 1, its gradient exactly 0.
// Minimax on [-1/2, 1/2] and exact at 0 too, relative error of 2^f 3e-9 before rounding.
constexpr float kExp2Near[] = {1.532431554e-4f, 1.339095847e-3f, 9.618517558e-3f,
                               5.550359591e-2f, 2.402264759e-1f, 6.931471825e-1f};

#if defined(__AVX512F__)
// Minimax on [0, 1), relative error 2e-9 before rounding, and 8.6e-5.
constexpr float kExp2Above[] = {2.161292516e-4f, 1.246784377e-3f, 9.675451825e-3f,
                                5.548528051e-2f, 2.402293056e-1f, 6.931470444e-1f};
constexpr float kExp2AboveShort[] = {7.706715863e-2f, 2.276448642e-1f, 6.951168150e-1f};

FF_INLINE vf fraction(vf x) { return (vf)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
FF_INLINE vf scale_by_floor(vf p, vf x) { return (vf)_mm512_scalef_ps((__m512)p, (__m512)x); }  // p * 2^floor(x)
FF_INLINE vf_half fraction(vf_half x) {
  return (vf_half)_mm256_reduce_ps((__m256)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
}
FF_INLINE vf_half scale_by_floor(vf_half p, vf_half x) { return (vf_half)_mm256_scalef_ps((__m256)p, (__m256)x); }

template <bool kShort = false, class V, int N>
FF_INLINE Several<V, N> exp2(const Several<V, N>& x) {
  const auto f = in_step<N>([&](int i) FF_LAMBDA { return fraction(x.at[i]); });
  const auto p = [&]() FF_LAMBDA {
    if constexpr (kShort) return polynomial(kExp2AboveShort, f);
    return polynomial(kExp2Above, f);
  }();
  const auto q = in_step<N>([&](int i) FF_LAMBDA { return fma(p.at[i], f.at[i], splat_as<V>(1.0f)); });
  return in_step<N>([&](int i) FF_LAMBDA { return scale_by_floor(q.at[i], x.at[i]); });
}
#else
FF_INLINE vf at_least(float low, vf x) { return max(splat(low), x); }  // a NaN passes: max returns its second operand

// x = whole + f: the low bits of x + 1.5 2^23 are those of the whole number, which go to the exponent of 2^f as they are.
// -127, where exactly 1 gets the bits of 0, is small enough; from -126 on results may be subnormal and not very exact.
template <bool kShort = false, class V, int N>
FF_INLINE Several<V, N> exp2(const Several<V, N>& x) {
  static_assert(!kShort, "of AVX-512 only");
  const V magic = splat_as<V>(0x1.8p23f);
  const auto from = in_step<N>([&](int i) FF_LAMBDA { return at_least(-127, x.at[i]); });
  const auto t = in_step<N>([&](int i) FF_LAMBDA { return from.at[i] + magic; });
  const auto f = in_step<N>([&](int i) FF_LAMBDA { return from.at[i] - (t.at[i] - magic); });
  const auto p = polynomial(kExp2Near, f);
  const auto q = in_step<N>([&](int i) FF_LAMBDA { return fma(p.at[i], f.at[i], splat_as<V>(1.0f)); });
  return in_step<N>([&](int i) FF_LAMBDA { return (V)((vi)q.at[i] + ((vi)t.at[i] << 23)); });
}
#endif
template <bool kShort = false, class V>
FF_INLINE V exp2(V x) {
  return exp2<kShort>(Several<V, 1>{{x}}).at[0];
}

// e / (e + 2) with e = exp(2|x|) - 1 = 2^whole (2^f - 1) + (2^whole - 1), where nothing cancels; far from 0 it is
// 1 - 2 / (e + 2), which e's error hardly reaches.
FF_INLINE vf tanh(vf x) {
  const vf magic = splat(0x1.8p23f), c = splat(2 * kLog2e), one = splat(1.0f);
  const vf a = min(splat(20.0f), (vf)((vi)x & 0x7fffffff));  // a NaN passes: min returns its second operand
  const vf t = fma(a, c, magic), f = fma(a, c, magic - t);
  const vf power = (vf)((vi)one + ((vi)t << 23));
  const vf e = fma(polynomial(kExp2Near, Several<vf, 1>{{f}}).at[0], f * power, power - one);
  const vi far = (vi)(e > splat(4.0f));
  const vf q = select(far, splat(2.0f), e) / (e + splat(2.0f)), y = select(far, one - q, q);
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
