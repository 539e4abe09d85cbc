// One instantiation of the forward kernel and its launch.
#pragma once

#include "cuda/attention_fwd.cuh"
#include "cuda/attention_tensor_map.h"

namespace fastfuse::cuda {

template <class C>
cudaError_t launch_attention_fwd(const AttentionForward& p, int blocks, cudaStream_t stream) {
  AttentionFwdArguments args;
  args.p = p;
  args.blocks = blocks;
  args.work = p.batch * blocks * p.kv_heads;
  args.dropout_threshold = dropout_threshold(p);
  cudaError_t error = map_rows(&args.k, p.k, p.dim, p.seq_k, p.kv_heads, p.batch, C::kBlockN);
  if (error == cudaSuccess) error = map_rows(&args.v, p.v, p.dim_v, p.seq_k, p.kv_heads, p.batch, C::kBlockN);
  int grid = 0;
  if (error == cudaSuccess) error = persistent_blocks(args.work, &grid);
  if (error != cudaSuccess) return error;
  return launch(attention_fwd_kernel<C>, grid, C::kThreads, C::kSharedBytes, stream, args);
}

#define FF_INSTANTIATE_ATTENTION_FWD(Element, kHeadDim)                                                                \
  template cudaError_t launch_attention_fwd<AttentionFwdConfig<Element, kHeadDim, false>>(const AttentionForward&,     \
                                                                                          int, cudaStream_t);          \
  template cudaError_t launch_attention_fwd<AttentionFwdConfig<Element, kHeadDim, true>>(const AttentionForward&, int, \
                                                                                         cudaStream_t);

}  // namespace fastfuse::cuda
