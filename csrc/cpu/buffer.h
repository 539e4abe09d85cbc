// Memory of a whole call; what a task needs comes from arena.h.
#pragma once

#include "cpu/simd.h"
#include "fastfuse/cpu.h"

namespace fastfuse::cpu::FASTFUSE_ISA {

// Uninitialised 64-byte aligned memory of a whole call.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t count, bool zeroed = false) {
    const size_t bytes = size_t(count) * sizeof(T) + 64;
    data_ = static_cast<T*>(zeroed ? __builtin_calloc(bytes, 1) : __builtin_malloc(bytes));
    if (!data_) __builtin_trap();
    prefer_huge_pages(data_, bytes);
  }
  Buffer(Buffer&& other) : data_(other.data_) { other.data_ = nullptr; }
  Buffer& operator=(Buffer&& other) {
    T* data = data_;
    data_ = other.data_;
    other.data_ = data;
    return *this;
  }
  ~Buffer() { __builtin_free(data_); }
  T* get() const { return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(data_) + 63) & ~uintptr_t(63)); }

 private:
  T* data_ = nullptr;
};

}  // namespace fastfuse::cpu::FASTFUSE_ISA
