#include "cuda/attention_map.cuh"

namespace fastfuse::cuda {
FF_INSTANTIATE_ATTENTION_MAP(bf16, 256)
}  // namespace fastfuse::cuda
