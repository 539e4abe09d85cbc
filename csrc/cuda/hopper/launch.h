// Where a thread stands, and how a kernel is started.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#define FF_DEVICE __device__ __forceinline__
#define FF_KERNEL(threads) __global__ void __launch_bounds__(threads, 1)
#define FF_GRID_CONSTANT __grid_constant__

namespace fastfuse::hopper {

FF_DEVICE int thread_index() { return int(threadIdx.x); }
FF_DEVICE int block_index() { return int(blockIdx.x); }
FF_DEVICE int grid_blocks() { return int(gridDim.x); }

// The blocks of a persistent grid: one for each multiprocessor, and no more than there is work.
inline cudaError_t persistent_blocks(int64_t work, int* blocks) {
  int device = 0, count = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  *blocks = int(work < count ? work : count);
  return error;
}

template <class Arguments>
cudaError_t launch(void (*kernel)(Arguments), int blocks, int threads, size_t shared_bytes, cudaStream_t stream,
                   const Arguments& arguments) {
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes));
  if (error != cudaSuccess) return error;
  kernel<<<blocks, threads, shared_bytes, stream>>>(arguments);
  return cudaGetLastError();
}

}  // namespace fastfuse::hopper
