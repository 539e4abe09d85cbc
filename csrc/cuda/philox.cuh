// Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
#pragma once

#include "cuda/hopper.h"

namespace fastfuse::cuda {

// words: the counter (c0, c1, c2, c3) on entry, four random words on return.
FF_DEVICE void philox(uint32_t (&words)[4], uint64_t key) {
  uint32_t k0 = uint32_t(key), k1 = uint32_t(key >> 32);
#pragma unroll
  for (int round = 0; round < 10; round++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
    const uint32_t high0 = hopper::multiply_high(words[0], 0xD2511F53u), low0 = words[0] * 0xD2511F53u;
    const uint32_t high1 = hopper::multiply_high(words[2], 0xCD9E8D57u), low1 = words[2] * 0xCD9E8D57u;
    words[0] = high1 ^ words[1] ^ k0;
    words[1] = low1;
    words[2] = high0 ^ words[3] ^ k1;
    words[3] = low0;
  }
}

}  // namespace fastfuse::cuda
