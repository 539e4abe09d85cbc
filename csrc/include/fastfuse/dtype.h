// Element types of the tensors that kernels take.
#pragma once

#include <cstdint>

namespace fastfuse {

enum class DType : int32_t { kFloat32, kBFloat16, kFloat16, kBool };

// Storage only: kernels widen to float.
struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

inline constexpr int size_of(DType dtype) { return dtype == DType::kFloat32 ? 4 : dtype == DType::kBool ? 1 : 2; }

}  // namespace fastfuse
