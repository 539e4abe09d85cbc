#include "cuda/attention_decode.cuh"

namespace fastfuse::cuda {
FF_INSTANTIATE_ATTENTION_DECODE(f16, 128)
}  // namespace fastfuse::cuda
