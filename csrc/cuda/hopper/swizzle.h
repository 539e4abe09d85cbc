// Where TMA puts, and wgmma expects, the 16-byte pieces of a row of 128, 64 or 32 bytes: piece p of row r lies at piece
// p ^ f(r), so that a column of pieces covers all banks.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define FF_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define FF_HOST_DEVICE inline
#endif

namespace fastfuse::hopper {

enum class Swizzle : int { k128 = 1, k64 = 2, k32 = 3 };  // bytes of a row; the value is wgmma's code

FF_HOST_DEVICE constexpr int swizzle_bytes(Swizzle swizzle) { return 256 >> int(swizzle); }

// The address that the piece meant for `address` has. Tiles start at multiples of 8 rows' bytes.
FF_HOST_DEVICE constexpr uint32_t swizzled(uint32_t address, Swizzle swizzle) {
  return address ^ ((address >> 7 & uint32_t(swizzle_bytes(swizzle) / 16 - 1)) << 4);
}

// How wgmma finds the rows of an operand in shared memory.
//
// kContraction-major: rows of the operand, `swizzle` bytes each along the contraction; 8 rows follow one another, the
// next 8 are `eight_rows` bytes further. To step 16 along the contraction, add 32 to the address.
// kOutput-major ("transposed"): rows along the contraction, each of `swizzle` bytes of output columns; 8 rows follow one
// another, the next 8 are `eight_rows` bytes further; the next columns are `next_columns` bytes further.
enum class Major : int { kContraction = 0, kOutput = 1 };

FF_HOST_DEVICE constexpr uint64_t matrix_descriptor(uint32_t address, uint32_t eight_rows, Swizzle swizzle,
                                                    uint32_t next_columns = 16) {
  return uint64_t(address >> 4 & 0x3fff) | uint64_t(next_columns >> 4 & 0x3fff) << 16 |
         uint64_t(eight_rows >> 4 & 0x3fff) << 32 | uint64_t(swizzle) << 62;
}

// Of what lies `bytes` further: one addition.
FF_HOST_DEVICE constexpr uint64_t advanced(uint64_t descriptor, uint32_t bytes) {
  return (descriptor >> 32) << 32 | uint32_t(uint32_t(descriptor) + (bytes >> 4));
}

}  // namespace fastfuse::hopper
