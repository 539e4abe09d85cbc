// Sums over the threads of a block, in a fixed order.
#pragma once

#include "cuda/hopper.h"

namespace fastfuse::cuda {

using namespace hopper;

constexpr int kRowThreads = 256, kRowWarps = kRowThreads / 32;

FF_DEVICE float warp_sum(float x) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) x += shuffle_xor(x, mask);
  return x;
}

// scratch: float[kRowWarps]. The sum stands in thread 0.
FF_DEVICE float block_sum(float x, uint32_t scratch) {
  x = warp_sum(x);
  if (thread_index() % 32 == 0) store_shared(scratch + 4 * (thread_index() / 32), x);
  block_sync();
  float sum = 0;
  if (thread_index() == 0) {
    for (int i = 0; i < kRowWarps; i++) sum += load_shared<float>(scratch + 4 * i);
  }
  return sum;
}

}  // namespace fastfuse::cuda
