// hopper/warp.h on the host.
#pragma once

#include <cstring>

#include "cuda/emulation/launch.h"

namespace fastfuse::hopper {

inline void warp_sync() { emulation::block->warp_sync(); }

template <class T>
T shuffle(T value, int lane) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = emulation::block->warp_exchange(bits, lane % 32);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

template <class T>
T shuffle_xor(T value, int mask) {
  return shuffle(value, (thread_index() % 32) ^ mask);
}

template <class T>
T warp_uniform(T x) {
  return shuffle(x, 0);
}

}  // namespace fastfuse::hopper
