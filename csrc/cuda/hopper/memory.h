// Shared memory by its 32-bit addresses, and global memory.
#pragma once

#include "cuda/hopper/launch.h"
#include "fastfuse/dtype.h"

namespace fastfuse::hopper {

// Address of the block's dynamic shared memory, a multiple of 1024. The kernel declares no other.
FF_DEVICE uint32_t shared_memory() {
  extern __shared__ __align__(1024) uint8_t bytes[];
  return uint32_t(__cvta_generic_to_shared(bytes));
}

template <class T>
FF_DEVICE T load_shared(uint32_t address) {
  return *static_cast<const T*>(__cvta_shared_to_generic(address));
}

template <class T>
FF_DEVICE void store_shared(uint32_t address, T value) {
  *static_cast<T*>(__cvta_shared_to_generic(address)) = value;
}

FF_DEVICE int atomic_add_shared(uint32_t address, int value) {
  return atomicAdd(static_cast<int*>(__cvta_shared_to_generic(address)), value);
}

// Of memory that nobody writes while the kernel runs.
template <class T>
FF_DEVICE T load_global(const T* address) {
  return __ldg(address);
}
FF_DEVICE bf16 load_global(const bf16* address) { return {__ldg(&address->bits)}; }
FF_DEVICE f16 load_global(const f16* address) { return {__ldg(&address->bits)}; }

template <class T>
FF_DEVICE void store_global(T* address, T value) {
  *address = value;
}

// What this thread has written to shared memory becomes visible to wgmma and to TMA; then a barrier tells them.
FF_DEVICE void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

}  // namespace fastfuse::hopper
