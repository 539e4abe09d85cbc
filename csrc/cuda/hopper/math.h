// Numbers: the special-function unit's approximations, and pairs of 16-bit floats.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/hopper/launch.h"
#include "fastfuse/dtype.h"

namespace fastfuse::hopper {

FF_DEVICE float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
FF_DEVICE float log2_approx(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
FF_DEVICE float reciprocal_approx(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
FF_DEVICE float natural_log(float x) { return logf(x); }
FF_DEVICE float natural_exp(float x) { return expf(x); }
FF_DEVICE float hyperbolic_tangent(float x) { return tanhf(x); }
FF_DEVICE float fused_multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
// Rounded each on its own: the compiler merges no product into them.
FF_DEVICE float add_exactly(float a, float b) { return __fadd_rn(a, b); }
FF_DEVICE float multiply_exactly(float a, float b) { return __fmul_rn(a, b); }
FF_DEVICE float maximum(float a, float b) { return fmaxf(a, b); }
FF_DEVICE uint32_t multiply_high(uint32_t a, uint32_t b) { return __umulhi(a, b); }
FF_DEVICE int count_bits(uint32_t bits) { return __popc(bits); }
// x, of which the compiler knows nothing: what follows from it is computed again, not kept in registers.
FF_DEVICE int recomputed(int x) {
  asm volatile("" : "+r"(x));
  return x;
}
FF_DEVICE float float_of_bits(uint32_t bits) { return __uint_as_float(bits); }

// Two floats rounded to the nearest T (bf16, f16), low in the low half.
template <class T>
FF_DEVICE uint32_t pack_pair(float low, float high);
template <>
FF_DEVICE uint32_t pack_pair<bf16>(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
template <>
FF_DEVICE uint32_t pack_pair<f16>(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

FF_DEVICE float to_float(float x) { return x; }
FF_DEVICE float to_float(bf16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }
FF_DEVICE float to_float(f16 x) { return __half2float(__ushort_as_half(x.bits)); }

}  // namespace fastfuse::hopper
