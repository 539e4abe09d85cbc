// What the CUDA bindings need of the device: its stream, and errors as exceptions. The emulation's device is the CPU.
#pragma once

#include <ATen/ATen.h>

#ifndef FASTFUSE_EMULATION
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

#include "fastfuse/cuda.h"

namespace fastfuse::cuda {

#ifdef FASTFUSE_EMULATION
inline constexpr at::DeviceType kDevice = at::kCPU;
struct DeviceGuard {
  explicit DeviceGuard(const at::Tensor&) {}
};
inline cudaStream_t current_stream() { return nullptr; }
#else
inline constexpr at::DeviceType kDevice = at::kCUDA;
struct DeviceGuard {
  explicit DeviceGuard(const at::Tensor& t) : guard(t.device()) {}
  c10::cuda::CUDAGuard guard;
};
inline cudaStream_t current_stream() { return c10::cuda::getCurrentCUDAStream(); }
#endif

inline void check(cudaError_t error, const char* op) {
  TORCH_CHECK(error == cudaSuccess, op, ": ", cudaGetErrorString(error));
}

}  // namespace fastfuse::cuda
