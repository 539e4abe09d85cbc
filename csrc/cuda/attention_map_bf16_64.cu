#include "cuda/attention_map.cuh"

namespace fastfuse::cuda {
FF_INSTANTIATE_ATTENTION_MAP(bf16, 64)
}  // namespace fastfuse::cuda
