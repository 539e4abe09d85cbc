// Allocations of global memory that the emulation knows. An access that comes close to one, but not inside, is an error;
// what lies further off belongs to somebody else.
#pragma once

#include <cstddef>

namespace fastfuse::emulation {

inline constexpr size_t kMarginBytes = 1024;  // on either side, nobody else's

void watch(const void* begin, size_t bytes);
void unwatch(const void* begin);

// Whether all bytes of an access belong to one allocation or to none that is known.
bool is_inside(const void* address, size_t bytes);

struct Watched {
  const void* begin;
  Watched(const void* begin, size_t bytes) : begin(begin) { watch(begin, bytes); }
  ~Watched() { unwatch(begin); }
  Watched(const Watched&) = delete;
};

}  // namespace fastfuse::emulation
