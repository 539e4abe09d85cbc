// TMA: copies of boxes between a tensor in global memory and shared memory.
//
// Coordinates count elements, innermost first. What lies outside the tensor is read as zero and is not written; the
// bytes that a barrier counts are those of the whole box.
#pragma once

#include <cuda.h>

#include "cuda/hopper/launch.h"
#include "cuda/hopper/swizzle.h"

namespace fastfuse::hopper {

using TensorMap = CUtensorMap;  // a kernel parameter, FF_GRID_CONSTANT

// 16-bit elements. sizes, strides, box: innermost first, `rank` of them; stride[0] is 1 and the others are in elements.
// cudaErrorInvalidValue where the hardware can not describe it: base or strides no multiple of 16 bytes.
inline cudaError_t make_tensor_map(TensorMap* map, const void* base, int rank, const int64_t* sizes,
                                   const int64_t* strides, const int* box, Swizzle swizzle) {
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found;
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found);
  if (error != cudaSuccess) return error;
  if (found != cudaDriverEntryPointSuccess) return cudaErrorNotSupported;
  cuuint64_t dims[5], pitches[5];
  cuuint32_t boxes[5], steps[5];
  for (int i = 0; i < rank; i++) {
    dims[i] = cuuint64_t(sizes[i]);
    boxes[i] = cuuint32_t(box[i]);
    steps[i] = 1;
    if (i > 0) pitches[i - 1] = cuuint64_t(strides[i]) * 2;
  }
  const CUtensorMapSwizzle pattern = swizzle == Swizzle::k128  ? CU_TENSOR_MAP_SWIZZLE_128B
                                     : swizzle == Swizzle::k64 ? CU_TENSOR_MAP_SWIZZLE_64B
                                                               : CU_TENSOR_MAP_SWIZZLE_32B;
  const CUresult result = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(entry)(
      map, CU_TENSOR_MAP_DATA_TYPE_UINT16, cuuint32_t(rank), const_cast<void*>(base), dims, pitches, boxes, steps,
      CU_TENSOR_MAP_INTERLEAVE_NONE, pattern, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

// By one thread. The box lands at `shared` (aligned to 1024 for Swizzle::k128) and its bytes arrive at the barrier.
FF_DEVICE void tma_load(const TensorMap* map, uint32_t barrier, uint32_t shared, int c0, int c1) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
          shared),
      "l"(map), "r"(barrier), "r"(c0), "r"(c1)
      : "memory");
}
FF_DEVICE void tma_load(const TensorMap* map, uint32_t barrier, uint32_t shared, int c0, int c1, int c2) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], "
      "[%2];" ::"r"(shared),
      "l"(map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2)
      : "memory");
}
FF_DEVICE void tma_load(const TensorMap* map, uint32_t barrier, uint32_t shared, int c0, int c1, int c2, int c3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], "
      "[%2];" ::"r"(shared),
      "l"(map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
      : "memory");
}
FF_DEVICE void tma_load(const TensorMap* map, uint32_t barrier, uint32_t shared, int c0, int c1, int c2, int c3,
                        int c4) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6, %7}], "
      "[%2];" ::"r"(shared),
      "l"(map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4)
      : "memory");
}

// By one thread, after fence_async_proxy by the writers and a barrier. Reads shared memory until tma_store_wait.
FF_DEVICE void tma_store(const TensorMap* map, uint32_t shared, int c0, int c1, int c2) {
  asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map),
               "r"(shared), "r"(c0), "r"(c1), "r"(c2)
               : "memory");
}
FF_DEVICE void tma_store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// At most kPending groups of this thread still read shared memory.
template <int kPending>
FF_DEVICE void tma_store_wait() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

}  // namespace fastfuse::hopper
