// One task's scratch memory: lay out, then take. A first pass with no memory measures, so sizes are written once.
//
//     float *scores, *out;
//     with_arena([&](Arena& arena) {
//       scores = arena.take<float>(64 * 64);
//       out = arena.take<float>(64 * dim);
//     });
#pragma once

#include "cpu/simd.h"
#include "fastfuse/cpu.h"

namespace fastfuse::cpu::FASTFUSE_ISA {

class Arena {
 public:
  explicit Arena(void* memory) : memory_(static_cast<char*>(memory)) {}
  // 64-byte aligned, uninitialised; null while measuring.
  template <class T>
  T* take(int64_t count) {
    const size_t begin = used_;
    used_ += size_t(round_up(count * int64_t(sizeof(T)), 64));
    return memory_ ? reinterpret_cast<T*>(memory_ + begin) : nullptr;
  }
  size_t used() const { return used_; }

 private:
  char* memory_;
  size_t used_ = 0;
};

// Calls layout(arena) twice: to measure, then with this thread's memory.
template <class Layout>
FF_INLINE void with_arena(Layout layout) {
  Arena measure(nullptr);
  layout(measure);
  Arena arena(thread_scratch(measure.used()));
  layout(arena);
}

}  // namespace fastfuse::cpu::FASTFUSE_ISA
