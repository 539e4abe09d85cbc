#include "cuda/emulation/fibre.h"

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
asm(R"(
.text
.globl fastfuse_switch_fibre
.type fastfuse_switch_fibre, @function
fastfuse_switch_fibre:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size fastfuse_switch_fibre, .-fastfuse_switch_fibre
)");
#elif defined(__aarch64__)
asm(R"(
.text
.globl fastfuse_switch_fibre
.type fastfuse_switch_fibre, %function
fastfuse_switch_fibre:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size fastfuse_switch_fibre, .-fastfuse_switch_fibre
)");
#else
#error "the emulation knows how to switch fibres on x86-64 and AArch64"
#endif

namespace fastfuse::emulation {

void* prepare_fibre(char* stack, size_t bytes, void (*entry)()) {
  auto* top = reinterpret_cast<uint64_t*>(uintptr_t(stack + bytes) & ~uintptr_t(15));
#if defined(__x86_64__)
  uint64_t* sp = top - 8;  // six registers, the return address, and the slot that a caller would have left
  std::memset(sp, 0, 8 * sizeof(uint64_t));
  sp[6] = reinterpret_cast<uint64_t>(entry);
#else
  uint64_t* sp = top - 20;
  std::memset(sp, 0, 20 * sizeof(uint64_t));
  sp[11] = reinterpret_cast<uint64_t>(entry);  // x30
#endif
  return sp;
}

}  // namespace fastfuse::emulation
