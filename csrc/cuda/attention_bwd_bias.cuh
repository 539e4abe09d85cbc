// Gradient of a bias that is broadcast: the sum of the scores' gradient over what the bias does not have.
#pragma once

#include "cuda/attention_bwd_tile.cuh"
#include "cuda/block_sum.cuh"

namespace fastfuse::cuda {

// Element `index` of dbias: the sum of every `step`th of its elements of ds, beginning with number `first`.
FF_DEVICE float sum_of_ds(const AttentionBackward& p, int64_t index, int first, int step) {
  const int full[4] = {p.batch, p.heads, p.seq_q, p.seq_k};
  int64_t at = 0, stride = 1, count = 1, size[4], pitch[4];
#pragma unroll
  for (int i = 3; i >= 0; i--) {
    const bool summed = p.bias_size[i] == 1;
    size[i] = summed ? full[i] : 1;
    pitch[i] = stride;
    count *= size[i];
    if (!summed) {
      at += index % full[i] * stride;
      index /= full[i];
    }
    stride *= full[i];
  }
  float sum = 0;
  for (int64_t n = first; n < count; n += step) {
    int64_t left = n, element = at;
#pragma unroll
    for (int i = 3; i >= 0; i--) {
      element += left % size[i] * pitch[i];
      left /= size[i];
    }
    sum += load_global(static_cast<const float*>(p.ds) + element);
  }
  return sum;
}

FF_DEVICE void store_rounded(void* to, DType dtype, int64_t at, float x) {
  if (dtype == DType::kFloat32) return store_global(static_cast<float*>(to) + at, x);
  const uint32_t bits = dtype == DType::kBFloat16 ? pack_pair<bf16>(x, 0) : pack_pair<f16>(x, 0);
  store_global(static_cast<uint16_t*>(to) + at, uint16_t(bits));
}

// Neighbouring threads sum for neighbouring keys; where keys are summed too, a block for each element.
static FF_KERNEL(kRowThreads) attention_bwd_dbias_kernel(const FF_GRID_CONSTANT AttentionBwdArguments args) {
  const AttentionBackward& p = args.p;
  if (p.bias_size[3] == 1 && p.seq_k > 1) {
    const float sum = block_sum(sum_of_ds(p, block_index(), thread_index(), kRowThreads), shared_memory());
    if (thread_index() == 0) store_rounded(p.dbias, p.bias_dtype, block_index(), sum);
    return;
  }
  const int64_t index = int64_t(block_index()) * kRowThreads + thread_index();
  if (index >= int64_t(p.bias_size[0]) * p.bias_size[1] * p.bias_size[2] * p.bias_size[3]) return;
  store_rounded(p.dbias, p.bias_dtype, index, sum_of_ds(p, index, 0, 1));
}

inline cudaError_t sum_bias(const AttentionBwdArguments& args, cudaStream_t stream) {
  const AttentionBackward& p = args.p;
  if (!p.dbias) return cudaSuccess;
  const int64_t elements = int64_t(p.bias_size[0]) * p.bias_size[1] * p.bias_size[2] * p.bias_size[3];
  const int64_t blocks = p.bias_size[3] == 1 && p.seq_k > 1 ? elements : (elements + kRowThreads - 1) / kRowThreads;
  return launch(attention_bwd_dbias_kernel, int(blocks), kRowThreads, 4 * kRowWarps, stream, args);
}

}  // namespace fastfuse::cuda
