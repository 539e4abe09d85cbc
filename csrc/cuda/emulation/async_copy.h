// hopper/async_copy.h on the host: copies land when they are waited for.
#pragma once

#include "cuda/emulation/launch.h"

namespace fastfuse::hopper {

inline void copy_async(uint32_t shared, const void* global, bool exists) {
  emulation::block->copy_async(shared, exists ? global : nullptr);
}
inline void copy_async_wait() { emulation::block->copy_async_wait(); }

}  // namespace fastfuse::hopper
