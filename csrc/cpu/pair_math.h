// Elementary functions and mask helpers of the contrastive kernels.
#pragma once

#include "cpu/simd.h"

namespace fastfuse::cpu::FASTFUSE_ISA {

// exp(x) for x <= 88, relative error 1e-7 and exactly 1 at 0, on which the cancellation of softmax - target rests.
FF_INLINE vf exp_exact(vf x) {
  const vf y = x * splat(kLog2e);
#if defined(__AVX512F__)
  const vf f = (vf)_mm512_reduce_ps((__m512)y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const vf p = polynomial(kExp2Near, Several<vf, 1>{{f}}).at[0];
  return scale_by_floor(fma(p, f, splat(1.0f)), y - f);
#else
  return exp2(y);
#endif
}

// log(1 + r) for r in [0, 2^126], relative error 3e-7: the rounding of 1 + r is made up for.
FF_INLINE vf log1p_wide(vf r) {
  const vf y = r + splat(1.0f);
  vf rest;
  return add_log((r - (y - splat(1.0f))) / y, y, rest);
}

// 1 / x to the last bit or two, in a quarter of a division's time.
FF_INLINE vf reciprocal(vf x) {
#if defined(__AVX512F__)
  const vf y = (vf)_mm512_rcp14_ps((__m512)x);
  return fma(y, fma(-x, y, splat(1.0f)), y);
#else
  return splat(1.0f) / x;
#endif
}

// x as it is stored: keeps the compiler from fusing the product that x is into a later addition, which would make x
// another number in each place that uses it.
FF_INLINE vf rounded(vf x) {
#if defined(FASTFUSE_EMULATED_LEVEL)
  __asm__("" : "+m"(x));  // wider than a register
#elif defined(__AVX512F__)
  __asm__("" : "+v"(x));
#elif defined(__x86_64__)
  __asm__("" : "+x"(x));
#elif defined(__aarch64__)
  __asm__("" : "+w"(x));
#else
  __asm__("" : "+m"(x));
#endif
  return x;
}

FF_INLINE vf absolute(vf x) { return (vf)((vi)x & 0x7fffffff); }

#if defined(__AVX512F__)
FF_INLINE uint32_t lane_bits(vi mask) { return _mm512_movepi32_mask((__m512i)mask); }
#elif defined(__AVX2__)
FF_INLINE uint32_t lane_bits(vi mask) { return _mm256_movemask_ps((__m256)mask); }
#else
FF_INLINE uint32_t lane_bits(vi mask) {
  uint32_t bits = 0;
  for (int i = 0; i < kLanes; i++) bits |= uint32_t(mask[i] & 1) << i;
  return bits;
}
#endif

// A vector of floats as doubles, for sums: two vectors. One of twice the size the compiler would keep in memory.
struct vwide {
  vd low, high;
  FF_INLINE friend vwide operator+(const vwide& a, const vwide& b) { return {a.low + b.low, a.high + b.high}; }
  FF_INLINE friend vwide operator*(const vwide& a, const vwide& b) { return {a.low * b.low, a.high * b.high}; }
  FF_INLINE friend vwide operator*(const vwide& a, double x) { return {a.low * x, a.high * x}; }
  FF_INLINE vwide& operator+=(const vwide& a) { return *this = *this + a; }
};

FF_INLINE vwide widen(vf v) {
  vf_of_vd parts[2];
  __builtin_memcpy(parts, &v, sizeof v);
  return {widen(parts[0]), widen(parts[1])};
}
FF_INLINE double reduce_add(const vwide& v) {
  const vd both = v.low + v.high;
  double sum = 0;
  for (int i = 0; i < kHalf; i++) sum += both[i];
  return sum;
}
FF_INLINE double reduce_add_double(vf v) { return reduce_add(widen(v)); }

}  // namespace fastfuse::cpu::FASTFUSE_ISA
