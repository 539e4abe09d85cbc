// Chooses the instantiation, and how many blocks share the keys.
#include "cuda/attention_decode_config.h"
#include "fastfuse/cuda_attention_decode.h"

namespace fastfuse::cuda {

template <class C>
cudaError_t launch_attention_decode(const AttentionForward& p, int splits, float* partial, cudaStream_t stream);

namespace {

template <class Element>
cudaError_t with_head_dim(const AttentionForward& p, int splits, float* partial, cudaStream_t stream) {
  const int dim = p.dim > p.dim_v ? p.dim : p.dim_v;
  if (dim <= 64) return launch_attention_decode<AttentionDecodeConfig<Element, 64>>(p, splits, partial, stream);
  if (dim <= 128) return launch_attention_decode<AttentionDecodeConfig<Element, 128>>(p, splits, partial, stream);
  return launch_attention_decode<AttentionDecodeConfig<Element, 256>>(p, splits, partial, stream);
}

}  // namespace

cudaError_t attention_decode_splits(const AttentionForward& p, int* splits) {
  constexpr int kBlockN = AttentionDecodeConfig<bf16, 64>::kBlockN, kBlocks = 2;  // of a multiprocessor
  const int64_t pairs = int64_t(p.batch) * p.kv_heads, tiles = (p.seq_k + kBlockN - 1) / kBlockN;
  int multiprocessors = 0;
  const cudaError_t error = hopper::persistent_blocks(pairs * tiles, &multiprocessors);
  const int64_t wanted = kBlocks * multiprocessors / pairs;
  *splits = int(wanted < 1 ? 1 : wanted > tiles ? tiles : wanted);
  return error;
}

cudaError_t attention_decode(const AttentionForward& p, int splits, float* partial, cudaStream_t stream) {
  const int64_t rows = int64_t(p.heads / p.kv_heads) * p.seq_q;
  if (rows > kDecodeRows || p.dim > 256 || p.dim_v > 256 || p.dim % 8 || p.dim_v % 8) return cudaErrorInvalidValue;
  return p.dtype == DType::kBFloat16 ? with_head_dim<bf16>(p, splits, partial, stream)
                                     : with_head_dim<f16>(p, splits, partial, stream);
}

}  // namespace fastfuse::cuda
