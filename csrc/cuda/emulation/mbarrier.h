// hopper/mbarrier.h on the host.
#pragma once

#include "cuda/emulation/launch.h"

namespace fastfuse::hopper {

inline void mbarrier_init(uint32_t barrier, uint32_t count) { emulation::block->mbarrier_init(barrier, count); }
inline void mbarrier_init_fence() { emulation::block->mbarrier_init_fence(); }
inline void mbarrier_arrive(uint32_t barrier) { emulation::block->mbarrier_arrive(barrier, 0); }
inline void mbarrier_arrive_expect(uint32_t barrier, uint32_t bytes) {
  emulation::block->mbarrier_arrive(barrier, bytes);
}
inline void mbarrier_wait(uint32_t barrier, uint32_t parity) { emulation::block->mbarrier_wait(barrier, parity); }

}  // namespace fastfuse::hopper
