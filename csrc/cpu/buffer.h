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
  explicit Buffer(int64_t count, bool zeroed = false) : bytes_(size_t(count) * sizeof(T) + kAlign) {
    data_ = static_cast<char*>(acquire(bytes_));
    if (!data_) __builtin_trap();
    if (zeroed) __builtin_memset(data_, 0, bytes_);
  }
  Buffer(Buffer&& other) : data_(other.data_), bytes_(other.bytes_) { other.data_ = nullptr; }
  Buffer& operator=(Buffer&& other) {
    char* const data = data_;
    const size_t bytes = bytes_;
    data_ = other.data_;
    bytes_ = other.bytes_;
    other.data_ = data;
    other.bytes_ = bytes;
    return *this;
  }
  ~Buffer() { release(data_, bytes_); }
  T* get() const { return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(data_) + kAlign - 1) & ~(kAlign - 1)); }

 private:
  static constexpr uintptr_t kAlign = 64;

  char* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace fastfuse::cpu::FASTFUSE_ISA
