// Contrastive kernels over all pairs of the rows of two matrices; no N x M array anywhere.
//
//   x_ij = scale * c_ij,   c_ij = a_i . b_j    (a_i, b_j divided by max(norm, 1e-12) first when `normalize`)
#pragma once

#include <cstdint>

#include "fastfuse/cpu.h"
#include "fastfuse/dtype.h"

namespace fastfuse {

struct Features {
  const void* data;  // [rows][dim], row stride in elements, last dimension contiguous
  int64_t rows, dim, stride;
  DType dtype;  // float32, bfloat16 or float16
};

// Which pairs are positives and which leave the denominator: equal keys mark a pair.
struct PairLabels {
  const int32_t* row_key;   // [N], with col_key: positives
  const int32_t* col_key;   // [M]
  const int32_t* row_skip;  // [N], with col_skip: left out of the denominator; both null: nothing is
  const int32_t* col_skip;  // [M]
  bool skip_positives;      // a pair that is both is left out, else kept
};

struct PairProblem {
  Features a, b;  // [N][D], [M][D]
  PairLabels labels;
  float scale;
  bool normalize;
  bool symmetric;  // b is a: only tiles on and above the diagonal are computed, each serves both sides
};

// Per row (or column): log sum_j exp(x_ij) = reference + log1p(rest), natural log. `count` is the number of positives,
// `gap` = reference - mean of x over them, `uniform_gap` = reference - mean of x over all columns (0 unless asked for).
struct PairStatistics {
  float *reference, *rest, *gap, *uniform_gap;  // [N]
  int32_t* count;                               // [N]
};

struct PairSoftmaxFwd : PairProblem {
  PairStatistics rows;  // [N]
  PairStatistics cols;  // [M], or all null
  bool uniform;
  void* kept;  // pair_kept_bytes for the backward, or null
};

// Gradients of unit * (sum of the row losses + N / M * sum of the column losses), in the features' dtype; null where
// not wanted. loss_i = (1 - s) (gap_i + log1p(rest_i)) + s (uniform_gap_i + log1p(rest_i)), s = label_smoothing.
struct PairSoftmaxBwd : PairProblem {
  PairStatistics rows, cols;
  const void* kept;  // as the forward left it, or null
  float label_smoothing;
  double unit;
  void *da, *db;   // [N][D], [M][D], contiguous
  double* dscale;  // [1]
};

// loss = sum_ij softplus(-label_ij (x_ij + bias)), label +-1; and its gradients in float32, null where not wanted.
struct PairSigmoid : PairProblem {
  float bias;
  double* loss;            // [1]
  float *da, *db;          // [N][D], [M][D], contiguous
  double *dscale, *dbias;  // [1]; both are set when the gradient of either matrix or of them is wanted
};

// to = factor from, rounded to `dtype`.
struct Scaled {
  const float* from;  // [count]
  int64_t count;
  float factor;
  void* to;  // [count]
  DType dtype;
};

namespace cpu {

// Bytes that a forward may leave to its backward, see pair_kept.h; 0 where they would be more than kKeptBytes.
int64_t pair_kept_bytes(const PairProblem& problem);

void pair_softmax_fwd(const PairSoftmaxFwd& params, const ThreadPool& pool);
void pair_softmax_bwd(const PairSoftmaxBwd& params, const ThreadPool& pool);
void pair_sigmoid(const PairSigmoid& params, const ThreadPool& pool);
void scaled(const Scaled& params, const ThreadPool& pool);

}  // namespace cpu
}  // namespace fastfuse
