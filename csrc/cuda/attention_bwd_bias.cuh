// Gradient of a bias that is broadcast: the sum of the scores' gradient over what the bias does not have.
//
//     dbias[kept] = sum of ds[kept, summed] over summed
//
// Neighbouring dimensions of [B, H, Sq, Sk] that are both kept, or both summed, count as one: there are two of each kind
// at most, and a thread divides once.
#pragma once

#include "cuda/attention_bwd_tile.cuh"
#include "cuda/block_sum.cuh"

namespace fastfuse::cuda {

// Of ds, the inner one first; 1, 0 where there is none. Keys up to ds_pitch count.
struct TwoDimensions {
  int64_t size[2], pitch[2];
};

struct BiasSums {
  const float* ds;  // [B, H, Sq, pitch] contiguous
  void* dbias;      // [kept] contiguous
  int pitch, keys;  // a row of ds, and of dbias where keys are kept
  DType dtype;      // of dbias
  TwoDimensions kept, summed;
};

inline TwoDimensions dimensions_of_ds(const AttentionBackward& p, bool summed) {
  const int size[4] = {p.batch, p.heads, p.seq_q, p.ds_pitch};
  TwoDimensions found{{1, 1}, {0, 0}};
  int n = -1;
  int64_t pitch = 1;
  for (int i = 3; i >= 0; i--) {
    if (size[i] > 1 && (p.bias_size[i] == 1) == summed) {
      if (n < 0 || pitch != found.size[n] * found.pitch[n]) found.pitch[++n] = pitch;
      found.size[n] *= size[i];
    }
    pitch *= size[i];
  }
  return found;
}

FF_DEVICE void store_rounded(void* to, DType dtype, int64_t at, float x) {
  if (dtype == DType::kFloat32) return store_global(static_cast<float*>(to) + at, x);
  const uint32_t bits = dtype == DType::kBFloat16 ? pack_pair<bf16>(x, 0) : pack_pair<f16>(x, 0);
  store_global(static_cast<uint16_t*>(to) + at, uint16_t(bits));
}

// Where kept element `index` of ds begins.
FF_DEVICE const float* kept_ds(const BiasSums& sums, int64_t index) {
  const int64_t outer = index / sums.kept.size[0], inner = index - outer * sums.kept.size[0];
  return sums.ds + outer * sums.kept.pitch[1] + inner * sums.kept.pitch[0];
}

constexpr int kSumsAtOnce = 8;  // loads in flight

// sum + x[0] + x[stride] + .., kSumsAtOnce of them, or only `count`.
template <bool kAll>
FF_DEVICE float add_some(float sum, const float* x, int64_t stride, int count) {
  float value[kSumsAtOnce];
#pragma unroll
  for (int i = 0; i < kSumsAtOnce; i++) value[i] = kAll || i < count ? load_global(x + i * stride) : 0.0f;
#pragma unroll
  for (int i = 0; i < kSumsAtOnce; i++) sum += value[i];
  return sum;
}

// From `ds` on, every kStep-th of the inner dimension, beginning with number `first`, for each of the outer one.
template <int kStep>
FF_DEVICE float sum_of_ds(const BiasSums& sums, const float* ds, int first) {
  const int64_t pitch = sums.summed.pitch[0], stride = kStep * pitch;
  const int64_t count = (sums.summed.size[0] - first + kStep - 1) / kStep;
  float sum = 0;
  for (int64_t outer = 0; outer < sums.summed.size[1]; outer++) {
    const float* x = ds + outer * sums.summed.pitch[1] + first * pitch;
    int64_t left = count;
    for (; left >= kSumsAtOnce; left -= kSumsAtOnce, x += kSumsAtOnce * stride)
      sum = add_some<true>(sum, x, stride, kSumsAtOnce);
    if (left > 0) sum = add_some<false>(sum, x, stride, int(left));
  }
  return sum;
}

// A thread for each element of [kept] with ds's rows, neighbours for neighbouring keys.
static FF_KERNEL(kRowThreads) attention_bwd_dbias_kernel(const FF_GRID_CONSTANT BiasSums sums) {
  const int64_t index = int64_t(block_index()) * kRowThreads + thread_index();
  const int64_t row = index / sums.pitch, key = index - row * sums.pitch;
  if (index >= sums.kept.size[0] * sums.kept.size[1] || key >= sums.keys) return;
  store_rounded(sums.dbias, sums.dtype, row * sums.keys + key, sum_of_ds<1>(sums, kept_ds(sums, index), 0));
}

// Where keys are summed: a block for each element, neighbouring threads read neighbouring keys.
static FF_KERNEL(kRowThreads) attention_bwd_dbias_of_keys_kernel(const FF_GRID_CONSTANT BiasSums sums) {
  const float* ds = kept_ds(sums, block_index());
  const float sum = block_sum(sum_of_ds<kRowThreads>(sums, ds, thread_index()), shared_memory());
  if (thread_index() == 0) store_rounded(sums.dbias, sums.dtype, block_index(), sum);
}

inline cudaError_t sum_bias(const AttentionBwdArguments& args, cudaStream_t stream) {
  const AttentionBackward& p = args.p;
  if (!p.dbias) return cudaSuccess;
  const BiasSums sums{
      static_cast<const float*>(p.ds), p.dbias, p.ds_pitch, p.seq_k, p.bias_dtype, dimensions_of_ds(p, false),
      dimensions_of_ds(p, true)};
  const int64_t elements = sums.kept.size[0] * sums.kept.size[1];
  if (p.bias_size[3] == 1)
    return launch(attention_bwd_dbias_of_keys_kernel, int(elements), kRowThreads, 4 * kRowWarps, stream, sums);
  return launch(attention_bwd_dbias_kernel, int((elements + kRowThreads - 1) / kRowThreads), kRowThreads, 0, stream,
                sums);
}

}  // namespace fastfuse::cuda
