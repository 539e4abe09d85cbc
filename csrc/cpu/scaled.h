// to[i] = factor from[i], rounded to the type of `to`: read once and written once.
#pragma once

#include "cpu/pair_features.h"

namespace fastfuse::cpu::FASTFUSE_ISA {

constexpr int64_t kScaledChunk = 16 << 10;

template <class T>
void scale_to(const Scaled& p, const ThreadPool& pool) {
  for_each(pool, ceil_div(p.count, kScaledChunk), [&](int64_t chunk) {
    const vf factor = splat(p.factor);
    const int64_t end = min_of(p.count, (chunk + 1) * kScaledChunk);
    T* to = static_cast<T*>(p.to);
    int64_t i = chunk * kScaledChunk;
    for (; i + kLanes <= end; i += kLanes) store_as(to + i, load(p.from + i) * factor);
    if (i < end) store_as(to + i, load(p.from + i, int(end - i)) * factor, int(end - i));
  });
}

FF_INLINE void scale_to(const Scaled& p, const ThreadPool& pool) {
  switch (p.dtype) {
    case DType::kBFloat16:
      return scale_to<bf16>(p, pool);
    case DType::kFloat16:
      return scale_to<f16>(p, pool);
    default:
      return scale_to<float>(p, pool);
  }
}

}  // namespace fastfuse::cpu::FASTFUSE_ISA
