// Within a warp. All 32 lanes call these together.
#pragma once

#include "cuda/hopper/launch.h"

namespace fastfuse::hopper {

FF_DEVICE void warp_sync() { __syncwarp(); }

template <class T>
FF_DEVICE T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

template <class T>
FF_DEVICE T shuffle(T value, int lane) {
  return __shfl_sync(0xffffffffu, value, lane);
}

// x, which is the same in all lanes: now the compiler knows, and keeps it and what follows from it once a warp.
template <class T>
FF_DEVICE T warp_uniform(T x) {
  return shuffle(x, 0);
}

}  // namespace fastfuse::hopper
