// hopper/wgmma.h on the host.
#pragma once

#include "cuda/emulation/launch.h"

namespace fastfuse::hopper {

inline void wgmma_fence() { emulation::block->wgmma_fence(); }
inline void wgmma_commit() { emulation::block->wgmma_commit(); }
template <int kPending>
void wgmma_wait() {
  emulation::block->wgmma_wait(kPending);
}

template <class T>
constexpr DType wgmma_dtype = std::is_same_v<T, bf16> ? DType::kBFloat16 : DType::kFloat16;

template <class T, Major kA = Major::kContraction, Major kB = Major::kContraction, int kCount>
void wgmma(float (&d)[kCount], uint64_t a, uint64_t b, bool accumulate) {
  static_assert(kCount % 4 == 0 && kCount <= 128);
  emulation::block->wgmma(wgmma_dtype<T>, kCount * 2, d, nullptr, {a, kA, 64}, {b, kB, kCount * 2}, accumulate);
}
template <class T, Major kB = Major::kContraction, int kCount>
void wgmma(float (&d)[kCount], const uint32_t* a, uint64_t b, bool accumulate) {
  static_assert(kCount % 4 == 0 && kCount <= 128);
  emulation::block->wgmma(wgmma_dtype<T>, kCount * 2, d, a, {}, {b, kB, kCount * 2}, accumulate);
}

}  // namespace fastfuse::hopper
