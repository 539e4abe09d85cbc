#include "cuda/attention_bwd_launch.cuh"

namespace fastfuse::cuda {
FF_INSTANTIATE_ATTENTION_BWD(f16, 256)
}  // namespace fastfuse::cuda
