// Barriers among a block's threads, and the registers that its warpgroups trade.
#pragma once

#include "cuda/hopper/launch.h"

namespace fastfuse::hopper {

FF_DEVICE void block_sync() { __syncthreads(); }

// Named barriers 1..15; 0 is block_sync. `threads`: how many sync or arrive, a multiple of 32.
FF_DEVICE void named_barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
FF_DEVICE void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// By whole warpgroups; a multiple of 8.
template <int kRegisters>
FF_DEVICE void increase_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
FF_DEVICE void decrease_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace fastfuse::hopper
