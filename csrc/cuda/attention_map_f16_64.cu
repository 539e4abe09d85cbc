#include "cuda/attention_map.cuh"

namespace fastfuse::cuda {
FF_INSTANTIATE_ATTENTION_MAP(f16, 64)
}  // namespace fastfuse::cuda
