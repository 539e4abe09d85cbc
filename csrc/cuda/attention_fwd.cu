// Chooses the instantiation.
#include "cuda/attention_fwd_config.h"
#include "cuda/attention_schedule.cuh"

namespace fastfuse::cuda {

template <class C>
cudaError_t launch_attention_fwd(const AttentionForward& p, int blocks, cudaStream_t stream);

namespace {

constexpr int kBlockM = AttentionFwdConfig<bf16, 64, false>::kBlockM;

int tiles_of(const AttentionProblem& p) {
  const int64_t stack = int64_t(p.heads / p.kv_heads) * p.seq_q;
  return int((stack + kBlockM - 1) / kBlockM);
}

template <class Element, int kHeadDim>
cudaError_t with_options(const AttentionForward& p, cudaStream_t stream) {
  return is_general(p) ? launch_attention_fwd<AttentionFwdConfig<Element, kHeadDim, true>>(p, tiles_of(p), stream)
                       : launch_attention_fwd<AttentionFwdConfig<Element, kHeadDim, false>>(p, tiles_of(p), stream);
}

template <class Element>
cudaError_t with_head_dim(const AttentionForward& p, cudaStream_t stream) {
  const int dim = p.dim > p.dim_v ? p.dim : p.dim_v;
  if (dim <= 64) return with_options<Element, 64>(p, stream);
  if (dim <= 128) return with_options<Element, 128>(p, stream);
  if (dim <= 192) return with_options<Element, 192>(p, stream);
  return with_options<Element, 256>(p, stream);
}

}  // namespace

int64_t attention_fwd_schedule_size(const AttentionForward& p) { return p.lo ? int64_t(3) * p.batch * tiles_of(p) : 0; }

cudaError_t attention_fwd(const AttentionForward& p, cudaStream_t stream) {
  const int dim = p.dim > p.dim_v ? p.dim : p.dim_v;
  if (dim > 256 || p.dim % 8 || p.dim_v % 8) return cudaErrorInvalidValue;
  if (p.lo) {
    const cudaError_t error = schedule_tiles({p, p.schedule, tiles_of(p), kBlockM}, stream);
    if (error != cudaSuccess) return error;
  }
  return p.dtype == DType::kBFloat16 ? with_head_dim<bf16>(p, stream) : with_head_dim<f16>(p, stream);
}

}  // namespace fastfuse::cuda
