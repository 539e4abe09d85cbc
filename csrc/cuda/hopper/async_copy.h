// Copies of 16 bytes that a thread starts and does not wait for: many are in flight without a register for any.
#pragma once

#include "cuda/hopper/launch.h"

namespace fastfuse::hopper {

// shared and global: multiples of 16. Where not `exists`, zeros are written and nothing is read.
FF_DEVICE void copy_async(uint32_t shared, const void* global, bool exists) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(__cvta_generic_to_global(global)),
               "r"(exists ? 16 : 0)
               : "memory");
}

// This thread's copies have landed, as if it had stored them: fence_async_proxy comes next where wgmma reads them.
FF_DEVICE void copy_async_wait() { asm volatile("cp.async.wait_all;" ::: "memory"); }

}  // namespace fastfuse::hopper
