// A position in a ring of stages, and the parity of its barriers' current phase there.
#pragma once

#include "cuda/hopper.h"

namespace fastfuse::cuda {

template <int kStages>
struct Ring {
  int stage = 0;
  uint32_t parity = 0;

  FF_DEVICE void advance() {
    stage++;
    if (stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

}  // namespace fastfuse::cuda
