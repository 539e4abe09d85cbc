// Feature matrices as kernels take them.
#pragma once

#include "bindings/runtime.h"
#include "fastfuse/pair.h"

namespace fastfuse {

inline Features features_of(const at::Tensor& t, const char* name) {
  TORCH_CHECK_VALUE(t.is_cpu(), name, ": expected a CPU tensor, got ", t.device());
  TORCH_CHECK_VALUE(t.dim() == 2 && t.size(1) > 0, name, ": expected (N, D >= 1), got ", t.sizes());
  TORCH_CHECK_VALUE(t.stride(1) == 1 || t.size(1) == 1, name, ": expected a contiguous last dimension");
  return {t.const_data_ptr(), t.size(0), t.size(1), t.stride(0), dtype_of(t, name)};
}

inline at::Tensor with_contiguous_rows(const at::Tensor& t) {
  return t.dim() != 2 || t.stride(1) == 1 ? t : t.contiguous();
}

}  // namespace fastfuse
