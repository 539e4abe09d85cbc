// Contrastive kernels on Hopper, over all pairs of the rows of two matrices. Formulas and letters as in
// fastfuse/pair.h; all pointers are the device's, scalars too: nothing waits for the device.
//
// bfloat16 or float16. What a loss needs, in order:
//
//   pair_features of both sides                                 rows, norms
//   pair_lse                                                    statistics of the softmax losses
//   for each chunk of rows of the pairs
//     pair_softmax_bwd or pair_sigmoid                          G, the chunk's gradient of the cosines
//     products by cuBLAS, the caller's                          T = G rows of b,  T = G^T rows of a
//   pair_gradient of both sides                                 da, db from T
#pragma once

#include <cstdint>

#include "fastfuse/cuda.h"
#include "fastfuse/dtype.h"

namespace fastfuse::cuda {

inline constexpr int kPairBlockM = 128, kPairBlockN = 256;  // of a tile of pairs

// One side of the pairs, as the products multiply it: c_ij = inverse_i inverse_j (rows_i . rows_j),
// rows_i = factor_i x_i. The factor is a power of two that brings the norm into [1, 2), or 1 where nothing is
// normalised: rows are exact, no product leaves the range, and the rest of the norm is applied to the product.
struct PairSide {
  int n, dim, pitch;  // pitch: of rows and of T, dim rounded up to a multiple of 8
  void* rows;         // [n][pitch], 0 in the padding
  float* inverse;     // [n]
  float* factor;      // [n]
  float* along;       // [n], inverse^2; 0 where the norm is constant
};

struct PairFeatures {
  DType dtype;
  const void* x;   // [n][dim]
  int64_t stride;  // of x's rows, in elements; the last dimension is contiguous
  bool normalize;
  PairSide side;  // written
};

// T [n][pitch] float32 to the gradient of x:  unit scale factor_i (t_i - along_i (rows_i . t_i) rows_i).
struct PairGradient {
  DType dtype;  // of the rows
  PairSide side;
  const float* t;      // [n][pitch]
  const float* scale;  // [1]
  const float* unit;   // [1], null: 1
  void* grad;          // [n][dim]
  DType grad_dtype;    // the rows' or float32
};

// Which pairs are positives and which leave the denominator: equal keys mark a pair.
struct PairLabels {
  const int64_t* row_key;   // [N], with col_key: positives
  const int64_t* col_key;   // [M]
  const int64_t* row_skip;  // [N], with col_skip: left out of the denominator; both null: nothing is
  const int64_t* col_skip;  // [M]
  bool skip_positives;      // a pair that is both is left out, else kept
};

struct PairProblem {
  DType dtype;
  PairSide a, b;  // [N], [M]
  PairLabels labels;
  const float* scale;  // [1]
  bool symmetric;      // b is a: only tiles on and above the diagonal are computed, each serves both sides
};

// Per row (or column): log sum_j exp(x_ij) = reference + log1p(rest), natural log. `count` is the number of positives,
// `gap` = reference - mean of x over them, `uniform_gap` = reference - mean of x over all columns (0 unless asked for).
struct PairStatistics {
  float* values;   // [4][n]: reference, rest, gap, uniform_gap
  int32_t* count;  // [n]
};

struct PairLse : PairProblem {
  PairStatistics rows;  // [N]
  PairStatistics cols;  // [M], or null
  bool uniform;
  float* scratch;  // [pair_lse_scratch]
};

// The rows of one chunk. G_ij is the gradient of c_ij without scale, times inverse_i inverse_j.
struct PairChunk {
  int first_row, rows;  // first_row: a multiple of kPairBlockM
  int first_col;  // G's first column, a multiple of kPairBlockN: 0, or symmetric the first that row first_row meets
  void* g;        // [rows][pitch], of the rows' dtype, 0 where symmetric leaves it out; null: not wanted
  int64_t pitch;  // M - first_col rounded up to a multiple of kPairBlockN
};

// G of  sum of the row losses + N / M * sum of the column losses.
// loss_i = (1 - s) (gap_i + log1p(rest_i)) + s (uniform_gap_i + log1p(rest_i)), s = label_smoothing.
struct PairSoftmaxBwd : PairProblem {
  PairStatistics rows;  // [N]
  PairStatistics cols;  // [M], or null
  float label_smoothing;
  PairChunk chunk;
  double* sums;  // [pair_parts][1]: their sum is sum_ij G_ij c_ij, dscale; those that no block reaches stay as they are
};

// G of  loss = sum_ij softplus(-label_ij (x_ij + bias)), label +-1.
struct PairSigmoid : PairProblem {
  const float* bias;  // [1]
  PairChunk chunk;
  double* sums;  // [pair_parts][3]: loss, dscale, dbias, as above
};

cudaError_t pair_parts(int* parts);                                  // of the sums
cudaError_t pair_lse_scratch(const PairLse& params, int64_t* size);  // floats

cudaError_t pair_features(const PairFeatures& params, cudaStream_t stream);
cudaError_t pair_lse(const PairLse& params, cudaStream_t stream);
cudaError_t pair_softmax_bwd(const PairSoftmaxBwd& params, cudaStream_t stream);
cudaError_t pair_sigmoid(const PairSigmoid& params, cudaStream_t stream);
cudaError_t pair_gradient(const PairGradient& params, cudaStream_t stream);

}  // namespace fastfuse::cuda
