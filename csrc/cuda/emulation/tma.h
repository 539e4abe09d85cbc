// hopper/tma.h on the host.
#pragma once

#include "cuda/emulation/launch.h"

namespace fastfuse::hopper {

template <class... C>
void tma_load(const TensorMap* map, uint32_t barrier, uint32_t shared, C... c) {
  const int at[] = {c...};
  if (map->rank != int(sizeof...(C))) emulation::block->fail("TMA load: coordinates and rank differ");
  emulation::block->tma_load(map, barrier, shared, at);
}

inline void tma_store(const TensorMap* map, uint32_t shared, int c0, int c1, int c2) {
  const int at[] = {c0, c1, c2};
  if (map->rank != 3) emulation::block->fail("TMA store: coordinates and rank differ");
  emulation::block->tma_store(map, shared, at);
}
inline void tma_store_commit() { emulation::block->tma_store_commit(); }
template <int kPending>
void tma_store_wait() {
  emulation::block->tma_store_wait(kPending);
}

}  // namespace fastfuse::hopper
