// Fused attention on Hopper. Formulas and letters as in fastfuse/attention.h; all pointers are the device's.
//
// bfloat16 or float16; D and Dv multiples of 8 up to 256. k and v start at, and their strides are, multiples of 8
// elements (16 bytes: what TMA can describe), and so for q.
#pragma once

#include <cstdint>

#include "fastfuse/cuda.h"
#include "fastfuse/dtype.h"

namespace fastfuse::cuda {

// A tensor of four dimensions whose last one is contiguous.
struct Rows {
  const void* data;
  int64_t stride[3];  // of batch, head, row; in elements
};

struct AttentionProblem {
  DType dtype;  // of q, k, v, out
  int batch, heads, kv_heads, seq_q, seq_k, dim, dim_v;
  Rows q;  // [B, H, Sq, D]
  Rows k;  // [B, Hk, Sk, D]
  Rows v;  // [B, Hk, Sk, Dv]

  const int32_t* lo;  // [B or 1, Sq or 1]: query i sees keys lo <= j < hi, clamped to [0, Sk]; null: all keys
  const int32_t* hi;
  int64_t span_stride[2];  // of batch, query; 0 where broadcast

  const void* bias;  // [B, H, Sq, Sk] through strides; kBool: false hides; else added; null: none
  DType bias_dtype;
  int64_t bias_stride[4];  // 0 where broadcast

  const float* sink;  // [H] or null
  const float* gate;  // [H] or null
  float scale, softcap;
  double dropout_p;
  const int64_t* seed;  // [1], read where dropout_p > 0
};

struct AttentionForward : AttentionProblem {
  void* out;   // [B, H, Sq, Dv] contiguous
  float* lse;  // [2, B, H, Sq]: natural log, with the sink, -inf where a query sees nothing; then what its rounding
               // left out
  int32_t* schedule;  // [attention_fwd_schedule_size]: scratch, or null where that is 0
};

int64_t attention_fwd_schedule_size(const AttentionForward& params);
cudaError_t attention_fwd(const AttentionForward& params, cudaStream_t stream);

}  // namespace fastfuse::cuda
