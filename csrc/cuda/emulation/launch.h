// hopper/launch.h on the host: blocks run one after another.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/emulation/block.h"

#define FF_DEVICE inline
#define FF_KERNEL(threads) void
#define FF_GRID_CONSTANT

namespace fastfuse::emulation {

void run_grid(int blocks, int threads, size_t shared_bytes, const std::function<void()>& kernel);

}  // namespace fastfuse::emulation

namespace fastfuse::hopper {

inline int thread_index() { return emulation::block->current().index; }
inline int block_index() { return emulation::block->index(); }
inline int grid_blocks() { return emulation::block->blocks(); }

inline cudaError_t persistent_blocks(int64_t work, int* blocks) {
  const int count = emulation::multiprocessors();
  *blocks = int(work < count ? work : count);
  return cudaSuccess;
}

template <class Arguments>
cudaError_t launch(void (*kernel)(Arguments), int blocks, int threads, size_t shared_bytes, cudaStream_t,
                   const Arguments& arguments) {
  // Each thread's copy of the parameters would have its own address, and TMA keeps the address of a tensor map.
  static_assert(std::is_trivially_copyable_v<Arguments>);
  emulation::run_grid(blocks, threads, shared_bytes, [&] { kernel(arguments); });
  return cudaSuccess;
}

}  // namespace fastfuse::hopper
