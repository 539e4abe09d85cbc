// hopper/barrier.h on the host.
#pragma once

#include "cuda/emulation/launch.h"

namespace fastfuse::hopper {

inline void block_sync() { emulation::block->named_barrier(0, emulation::block->threads(), true); }
inline void named_barrier_sync(int id, int threads) { emulation::block->named_barrier(id, threads, true); }
inline void named_barrier_arrive(int id, int threads) { emulation::block->named_barrier(id, threads, false); }

template <int kRegisters>
void increase_registers() {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256);
  emulation::block->increase_registers(kRegisters);
}
template <int kRegisters>
void decrease_registers() {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256);
  emulation::block->decrease_registers(kRegisters);
}

}  // namespace fastfuse::hopper
