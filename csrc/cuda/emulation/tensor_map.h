// A tensor as TMA sees it, and a box of it.
#pragma once

#include <cstdint>

#include "cuda/emulation/runtime.h"
#include "cuda/hopper/swizzle.h"

namespace fastfuse::hopper {

struct TensorMap {  // innermost first
  uint8_t* base;
  int rank;
  int64_t sizes[5], strides[5];  // elements of 2 bytes
  int box[5];
  Swizzle swizzle;
  int64_t box_bytes() const {
    int64_t bytes = 2;
    for (int i = 0; i < rank; i++) bytes *= box[i];
    return bytes;
  }
};

inline cudaError_t make_tensor_map(TensorMap* map, const void* base, int rank, const int64_t* sizes,
                                   const int64_t* strides, const int* box, Swizzle swizzle) {
  bool fits = rank >= 1 && rank <= 5 && reinterpret_cast<uintptr_t>(base) % 16 == 0 && strides[0] == 1 &&
              box[0] * 2 <= swizzle_bytes(swizzle);
  *map = {static_cast<uint8_t*>(const_cast<void*>(base)), rank, {}, {}, {}, swizzle};
  for (int i = 0; fits && i < rank; i++) {
    fits = sizes[i] > 0 && sizes[i] <= int64_t(1) << 32 && box[i] > 0 && box[i] <= 256 &&
           (i == 0 || (strides[i] % 8 == 0 && strides[i] >= 0 && strides[i] < int64_t(1) << 39));
    map->sizes[i] = sizes[i], map->strides[i] = strides[i], map->box[i] = box[i];
  }
  return fits ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace fastfuse::hopper
