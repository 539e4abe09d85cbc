// Heads of rows as TMA sees them.
#pragma once

#include "cuda/hopper.h"
#include "fastfuse/cuda_attention.h"

namespace fastfuse::cuda {

using namespace hopper;

// (dim, count, heads, batch), boxes of (64, box_rows, 1, 1), rows of 128 bytes swizzled.
inline cudaError_t map_rows(TensorMap* map, const Rows& rows, int dim, int count, int heads, int batch, int box_rows) {
  const int64_t sizes[4] = {dim, count, heads, batch};
  const int64_t strides[4] = {1, rows.stride[2], rows.stride[1], rows.stride[0]};
  const int box[4] = {64, box_rows, 1, 1};
  return make_tensor_map(map, rows.data, 4, sizes, strides, box, Swizzle::k128);
}

}  // namespace fastfuse::cuda
