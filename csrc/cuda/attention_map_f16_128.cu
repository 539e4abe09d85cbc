#include "cuda/attention_map.cuh"

namespace fastfuse::cuda {
FF_INSTANTIATE_ATTENTION_MAP(f16, 128)
}  // namespace fastfuse::cuda
