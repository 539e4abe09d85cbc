#include "cuda/attention_fwd_launch.cuh"

namespace fastfuse::cuda {
FF_INSTANTIATE_ATTENTION_FWD(bf16, 64)
}  // namespace fastfuse::cuda
