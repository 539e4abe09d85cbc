// What every family of bindings shares: torch's threads behind the kernels' ThreadPool, dtypes and checks.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "fastfuse/cpu.h"
#include "fastfuse/dtype.h"

namespace fastfuse {

inline cpu::ThreadPool torch_threads() {
  const auto run = [](int workers, void (*body)(void*, int), void* context) {
    at::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
      for (int64_t worker = begin; worker < end; worker++) body(context, int(worker));
    });
  };
  return {run, at::in_parallel_region() ? 1 : at::get_num_threads()};
}

// An uninitialised result, past the dispatcher, which costs more than the allocation; in memory of cpu::acquire where it
// is large.
at::Tensor new_tensor(at::IntArrayRef sizes, const at::TensorOptions& options);

inline DType dtype_of(const at::Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case at::kFloat:
      return DType::kFloat32;
    case at::kBFloat16:
      return DType::kBFloat16;
    case at::kHalf:
      return DType::kFloat16;
    case at::kBool:
      return DType::kBool;
    default:
      TORCH_CHECK_TYPE(false, name, ": dtype ", t.scalar_type(), " is not served by the cpu backend");
  }
}

inline void check_shape(const at::Tensor& t, at::IntArrayRef shape, const char* name) {
  TORCH_CHECK_VALUE(t.is_cpu(), name, ": expected a CPU tensor, got ", t.device());
  TORCH_CHECK_VALUE(t.sizes() == shape, name, ": shape ", t.sizes(), ", expected ", shape);
}

inline void check_dtype(const at::Tensor& t, at::ScalarType dtype, const char* name) {
  TORCH_CHECK_TYPE(t.scalar_type() == dtype, name, ": dtype ", t.scalar_type(), ", expected ", dtype);
}

}  // namespace fastfuse
