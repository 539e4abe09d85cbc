#include "cuda/attention_fwd_launch.cuh"

namespace fastfuse::cuda {
FF_INSTANTIATE_ATTENTION_FWD(bf16, 192)
}  // namespace fastfuse::cuda
