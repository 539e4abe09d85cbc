// hopper/memory.h on the host.
#pragma once

#include <cstring>

#include "cuda/emulation/launch.h"

namespace fastfuse::hopper {

inline uint32_t shared_memory() { return 0; }

template <class T>
T load_shared(uint32_t address) {
  T value;
  std::memcpy(&value, emulation::block->read_shared(address, sizeof(T)), sizeof(T));
  return value;
}

template <class T>
void store_shared(uint32_t address, T value) {
  std::memcpy(emulation::block->write_shared(address, sizeof(T)), &value, sizeof(T));
}

inline int atomic_add_shared(uint32_t address, int value) {
  int* sum = reinterpret_cast<int*>(emulation::block->write_shared(address, sizeof(int)));
  const int before = load_shared<int>(address);
  *sum = before + value;
  return before;
}

template <class T>
T load_global(const T* address) {
  emulation::block->check_global(address, sizeof(T), "load");
  return *address;
}

template <class T>
void store_global(T* address, T value) {
  emulation::block->check_global(address, sizeof(T), "store");
  *address = value;
}

inline void fence_async_proxy() { emulation::block->fence_async_proxy(); }

}  // namespace fastfuse::hopper
