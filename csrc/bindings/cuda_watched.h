// CPU tensors whose ends the emulation knows.
#pragma once

#include <c10/core/CPUAllocator.h>

#include <cstdlib>

#include "cuda/emulation/global.h"

namespace fastfuse::cuda {

class WatchedAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    constexpr size_t margin = emulation::kMarginBytes, line = 64;
    auto* whole = static_cast<uint8_t*>(std::aligned_alloc(line, (bytes + 2 * margin + line - 1) / line * line));
    emulation::watch(whole + margin, bytes);
    void* const data = whole + margin;
    return {data, data, &release, at::Device(at::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }

 private:
  static void release(void* data) {
    emulation::unwatch(data);
    std::free(static_cast<uint8_t*>(data) - emulation::kMarginBytes);
  }
};

inline void watch_memory(bool on) {
  static WatchedAllocator watched;
  static c10::Allocator* const plain = c10::GetCPUAllocator();
  c10::SetCPUAllocator(on ? &watched : plain);
}

}  // namespace fastfuse::cuda
