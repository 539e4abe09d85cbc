// Fibres: threads of execution that switch in user space, some nanoseconds each.
#pragma once

#include <cstddef>

namespace fastfuse::emulation {

// Saves the callee's registers on the running stack, its pointer to *from, and goes on where `to` was saved.
extern "C" void fastfuse_switch_fibre(void** from, void* to);

// A stack pointer that, switched to, calls entry() on the given stack. entry never returns.
void* prepare_fibre(char* stack, size_t bytes, void (*entry)());

}  // namespace fastfuse::emulation
