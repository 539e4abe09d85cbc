// Two neighbouring values, moved at once.
#pragma once

#include "cuda/hopper.h"

namespace fastfuse::cuda {

template <class T>
struct alignas(2 * sizeof(T)) Two {
  T at[2];
};

template <class T>
FF_DEVICE Two<T> load_two(uint32_t shared) {
  return hopper::load_shared<Two<T>>(shared);
}

}  // namespace fastfuse::cuda
