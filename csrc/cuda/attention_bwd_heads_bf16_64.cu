#include "cuda/attention_bwd_launch.cuh"

namespace fastfuse::cuda {
FF_INSTANTIATE_ATTENTION_BWD_HEADS(bf16)
}  // namespace fastfuse::cuda
