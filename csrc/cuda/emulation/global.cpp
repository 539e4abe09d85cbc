#include "cuda/emulation/global.h"

#include <cstdint>
#include <map>
#include <mutex>

namespace fastfuse::emulation {
namespace {

std::mutex lock;                             // tensors live and die in any thread
std::map<uintptr_t, uintptr_t> allocations;  // begin, end

}  // namespace

void watch(const void* begin, size_t bytes) {
  const std::lock_guard guard(lock);
  allocations[uintptr_t(begin)] = uintptr_t(begin) + bytes;
}

void unwatch(const void* begin) {
  const std::lock_guard guard(lock);
  allocations.erase(uintptr_t(begin));
}

bool is_inside(const void* address, size_t bytes) {
  const uintptr_t first = uintptr_t(address);
  const std::lock_guard guard(lock);
  auto found = allocations.upper_bound(first + kMarginBytes);
  if (found == allocations.begin()) return true;
  const auto [begin, end] = *--found;
  return (begin <= first && first + bytes <= end) || first >= end + kMarginBytes;
}

}  // namespace fastfuse::emulation
