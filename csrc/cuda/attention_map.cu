// Chooses the instantiation.
#include "cuda/attention_map_config.h"
#include "fastfuse/cuda_attention_map.h"

namespace fastfuse::cuda {

template <class C>
cudaError_t launch_attention_map(const AttentionMap& p, cudaStream_t stream);

namespace {

template <class Element>
cudaError_t with_head_dim(const AttentionMap& p, cudaStream_t stream) {
  if (p.dim <= 64) return launch_attention_map<AttentionMapConfig<Element, 64>>(p, stream);
  if (p.dim <= 128) return launch_attention_map<AttentionMapConfig<Element, 128>>(p, stream);
  return launch_attention_map<AttentionMapConfig<Element, 256>>(p, stream);
}

}  // namespace

cudaError_t attention_map(const AttentionMap& p, cudaStream_t stream) {
  if (p.dim > 256 || p.dim % 8) return cudaErrorInvalidValue;
  return p.dtype == DType::kBFloat16 ? with_head_dim<bf16>(p, stream) : with_head_dim<f16>(p, stream);
}

}  // namespace fastfuse::cuda
