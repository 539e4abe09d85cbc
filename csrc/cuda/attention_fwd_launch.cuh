// One instantiation of the forward kernel and its launch.
#pragma once

#include "cuda/attention_fwd.cuh"

namespace fastfuse::cuda {

inline cudaError_t key_map(TensorMap* map, const AttentionProblem& p, const Rows& rows, int dim, int box_rows) {
  const int64_t sizes[4] = {dim, p.seq_k, p.kv_heads, p.batch};
  const int64_t strides[4] = {1, rows.stride[2], rows.stride[1], rows.stride[0]};
  const int box[4] = {64, box_rows, 1, 1};
  return make_tensor_map(map, rows.data, 4, sizes, strides, box, Swizzle::k128);
}

template <class C>
cudaError_t launch_attention_fwd(const AttentionForward& p, int blocks, cudaStream_t stream) {
  AttentionFwdArguments args;
  args.p = p;
  args.blocks = blocks;
  args.work = p.batch * blocks * p.kv_heads;
  const double threshold = p.dropout_p * 4294967296.0;
  args.dropout_threshold = threshold >= 4294967295.0 ? 4294967295u : uint32_t(threshold);
  cudaError_t error = key_map(&args.k, p, p.k, p.dim, C::kBlockN);
  if (error == cudaSuccess) error = key_map(&args.v, p, p.v, p.dim_v, C::kBlockN);
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
