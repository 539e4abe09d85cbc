#include "cuda/attention_decode.cuh"

namespace fastfuse::cuda {
FF_INSTANTIATE_ATTENTION_DECODE(bf16, 256)
}  // namespace fastfuse::cuda
