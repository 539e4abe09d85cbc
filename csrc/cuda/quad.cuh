// Among the four neighbouring threads that share a row of a wgmma's result.
#pragma once

#include "cuda/hopper.h"

namespace fastfuse::cuda {

// The four exchange words so that each has 16 bytes of the row: word[s] of thread t becomes word[t] of thread s.
FF_DEVICE void transpose_quad(uint32_t (&word)[4]) {
#pragma unroll
  for (int bit = 1; bit <= 2; bit *= 2) {
    const bool upper = hopper::thread_index() & bit;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if (i & bit) continue;
      const uint32_t got = hopper::shuffle_xor(upper ? word[i] : word[i | bit], bit);
      (upper ? word[i] : word[i | bit]) = got;
    }
  }
}

}  // namespace fastfuse::cuda
