#include "cuda/attention_fwd_launch.cuh"

namespace fastfuse::cuda {
FF_INSTANTIATE_ATTENTION_FWD(f16, 192)
}  // namespace fastfuse::cuda
