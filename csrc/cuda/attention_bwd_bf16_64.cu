#include "cuda/attention_bwd_launch.cuh"

namespace fastfuse::cuda {
FF_INSTANTIATE_ATTENTION_BWD(bf16, 64)
}  // namespace fastfuse::cuda
