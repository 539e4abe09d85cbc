// hopper/math.h on the host.
#pragma once

#include <cmath>
#include <cstring>

#include "cuda/emulation/launch.h"
#include "fastfuse/dtype.h"

namespace fastfuse::hopper {

inline float exp2_approx(float x) { return std::exp2(x); }
inline float log2_approx(float x) { return std::log2(x); }
inline float reciprocal_approx(float x) { return 1.0f / x; }
inline float natural_log(float x) { return std::log(x); }
inline float natural_exp(float x) { return std::exp(x); }
inline float hyperbolic_tangent(float x) { return std::tanh(x); }
inline float fused_multiply_add(float a, float b, float c) { return std::fma(a, b, c); }
inline float add_exactly(float a, float b) {
  volatile float sum = a + b;
  return sum;
}
inline float multiply_exactly(float a, float b) {
  volatile float product = a * b;
  return product;
}
inline float maximum(float a, float b) { return std::fmax(a, b); }
inline uint32_t multiply_high(uint32_t a, uint32_t b) { return uint32_t(uint64_t(a) * b >> 32); }
inline int count_bits(uint32_t bits) { return __builtin_popcount(bits); }
inline int recomputed(int x) { return x; }
inline float float_of_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) { return float_of_bits(uint32_t(x.bits) << 16); }
inline float to_float(f16 x) {
  _Float16 value;
  std::memcpy(&value, &x.bits, 2);
  return float(value);
}

template <class T>
uint16_t round_to(float x) {
  if constexpr (std::is_same_v<T, bf16>) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if (x != x) return 0x7fff;
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  } else {
    const auto value = _Float16(x);
    uint16_t bits;
    std::memcpy(&bits, &value, 2);
    return bits;
  }
}

template <class T>
uint32_t pack_pair(float low, float high) {
  return round_to<T>(low) | uint32_t(round_to<T>(high)) << 16;
}

}  // namespace fastfuse::hopper
