// mbarrier: a counter of arrivals and of bytes in shared memory, in phases.
//
// A phase ends when `count` arrivals came and all expected bytes have landed. wait(barrier, parity) returns when the
// phase of that parity has ended: 0 for the first, 1 for the second, 0 for the third ... On a fresh barrier
// wait(barrier, 1) returns at once, which lets a producer start on empty stages.
#pragma once

#include "cuda/hopper/launch.h"

namespace fastfuse::hopper {

// barrier: address of 8 bytes, aligned to 8.
FF_DEVICE void mbarrier_init(uint32_t barrier, uint32_t count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}

// After the init, by the same thread, before the block's barrier: TMA sees the barriers too.
FF_DEVICE void mbarrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

FF_DEVICE void mbarrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

FF_DEVICE void mbarrier_arrive_expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

FF_DEVICE void mbarrier_wait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra finished;\n"
      "bra again;\n"
      "finished:\n"
      "}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

}  // namespace fastfuse::hopper
