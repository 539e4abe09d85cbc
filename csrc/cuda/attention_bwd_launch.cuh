// One instantiation of the backward's two kernels and their launch.
#pragma once

#include "cuda/attention_bwd_heads.cuh"
#include "cuda/attention_bwd_keys.cuh"
#include "cuda/attention_bwd_queries.cuh"
#include "cuda/attention_tensor_map.h"

namespace fastfuse::cuda {

inline cudaError_t map_runs(TensorMap* map, const AttentionBwdArguments& args, Rows rows, int dim, int box_rows) {
  const AttentionBackward& p = args.p;
  rows.stride[1] *= p.heads / p.kv_heads / args.runs.count;  // heads of a run
  return map_rows(map, rows, dim, args.runs.rows, p.kv_heads * args.runs.count, p.batch, box_rows);
}

template <class C, class Arguments>
cudaError_t map_tensors(Arguments& args) {
  const AttentionBackward& p = args.p;
  cudaError_t error = map_rows(&args.k, p.k, p.dim, p.seq_k, p.kv_heads, p.batch, C::kBlockN);
  if (error == cudaSuccess) error = map_rows(&args.v, p.v, p.dim_v, p.seq_k, p.kv_heads, p.batch, C::kBlockN);
  if (error == cudaSuccess) error = map_runs(&args.q, args, p.q, p.dim, C::kBlockM);
  if (error == cudaSuccess) error = map_runs(&args.dout, args, p.dout, p.dim_v, C::kBlockM);
  return error;
}

template <class C>
cudaError_t launch_attention_bwd_queries(const AttentionBwdArguments& common, cudaStream_t stream) {
  AttentionBwdQueriesArguments args{common};
  args.work = args.p.batch * args.p.kv_heads * args.runs.count * args.runs.tiles / 2;
  int grid = 0;
  cudaError_t error = map_tensors<C>(args);
  if (error == cudaSuccess) error = persistent_blocks(args.work, &grid);
  if (error != cudaSuccess) return error;
  return launch(attention_bwd_queries_kernel<C>, grid, C::kThreads, C::kSharedBytes, stream, args);
}

template <class C>
cudaError_t launch_attention_bwd_keys(const AttentionBwdArguments& common, cudaStream_t stream) {
  AttentionBwdKeysArguments args{common};
  args.blocks = (args.p.seq_k + C::kBlockN - 1) / C::kBlockN;
  const cudaError_t error = map_tensors<C>(args);
  if (error != cudaSuccess) return error;
  return launch(attention_bwd_keys_kernel<C>, args.p.batch * args.p.kv_heads * args.blocks, C::kThreads,
                C::kSharedBytes, stream, args);
}

template <class C>
cudaError_t launch_attention_bwd_heads(const AttentionBwdArguments& common, cudaStream_t stream) {
  AttentionBwdHeadsArguments args{common};
  const cudaError_t error = map_tensors<C>(args);
  if (error != cudaSuccess) return error;
  return launch(attention_bwd_heads_kernel<C>, args.p.batch * args.p.kv_heads, C::kThreads, C::kSharedBytes, stream,
                args);
}

#define FF_INSTANTIATE_ATTENTION_BWD_HEADS(Element)                                                               \
  template cudaError_t launch_attention_bwd_heads<AttentionBwdHeadsConfig<Element>>(const AttentionBwdArguments&, \
                                                                                    cudaStream_t);

#define FF_INSTANTIATE_ATTENTION_BWD(Element, kHeadDim)                                                   \
  template cudaError_t launch_attention_bwd_queries<AttentionBwdQueriesConfig<Element, kHeadDim, false>>( \
      const AttentionBwdArguments&, cudaStream_t);                                                        \
  template cudaError_t launch_attention_bwd_queries<AttentionBwdQueriesConfig<Element, kHeadDim, true>>(  \
      const AttentionBwdArguments&, cudaStream_t);                                                        \
  template cudaError_t launch_attention_bwd_keys<AttentionBwdKeysConfig<Element, kHeadDim, false>>(       \
      const AttentionBwdArguments&, cudaStream_t);                                                        \
  template cudaError_t launch_attention_bwd_keys<AttentionBwdKeysConfig<Element, kHeadDim, true>>(        \
      const AttentionBwdArguments&, cudaStream_t);

}  // namespace fastfuse::cuda
