// Fused attention on the CPU: forward, backward and attention maps.
//
//     s = softcap(scale q k^T) + bias, -inf outside the span        softcap(x) = c tanh(x / c)
//     lse = log(sum_j exp(s_j) + exp(sink));  p = exp(s - lse)
//     out = tanh(gate) (p keep / (1 - dropout_p)) v
//
// Letters of the shapes: B batch, H query heads, Hk key heads (H % Hk == 0), Sq queries, Sk keys, D, Dv head sizes.
#pragma once

#include <cstdint>

#include "fastfuse/cpu.h"
#include "fastfuse/dtype.h"

namespace fastfuse::cpu {

// A tensor of four dimensions whose last one is contiguous.
struct Rows {
  const void* data = nullptr;
  int64_t stride[3] = {};  // of batch, head, row; in elements
};

struct AttentionProblem {
  DType dtype;  // of q, k, v and of every tensor not said to be otherwise
  int64_t batch, heads, kv_heads, seq_q, seq_k, dim, dim_v;
  Rows q;  // [B, H, Sq, D]
  Rows k;  // [B, Hk, Sk, D]
  Rows v;  // [B, Hk, Sk, Dv]

  const int32_t* lo = nullptr;  // [B or 1, Sq or 1]: query i sees keys lo <= j < hi, clamped to [0, Sk]; null: all keys
  const int32_t* hi = nullptr;
  int64_t span_stride[2] = {};  // of batch, query; 0 where broadcast

  const void* bias = nullptr;  // [B, H, Sq, Sk] through strides; kBool: false hides; else added
  DType bias_dtype = DType::kFloat32;
  int64_t bias_stride[4] = {};  // 0 where broadcast

  const float* sink = nullptr;  // [H]
  const float* gate = nullptr;  // [H]
  float scale = 1, softcap = 0, dropout_p = 0;
  uint64_t seed = 0;

  ThreadPool pool = {nullptr, 1};
};

struct AttentionForward : AttentionProblem {
  void* out;   // [B, H, Sq, Dv] contiguous
  float* lse;  // [2, B, H, Sq]: natural log, with the sink, -inf where a query sees nothing; then what its rounding
               // left out
  void* kept = nullptr;  // attention_kept_bytes, 64-byte aligned, for the backward; or null
};

struct AttentionBackward : AttentionProblem {
  Rows dout;                    // [B, H, Sq, Dv]
  Rows out;                     // [B, H, Sq, Dv], after the gate
  const float* lse;             // [2, B, H, Sq]
  const float* dlse = nullptr;  // [B, H, Sq] or null
  void* kept = nullptr;         // what the forward of this problem left there, or null
  // Any gradient may be null: not wanted.
  void* dq = nullptr;            // [B, H, Sq, D] contiguous
  void* dk = nullptr;            // [B, Hk, Sk, D] contiguous
  void* dv = nullptr;            // [B, Hk, Sk, Dv] contiguous
  float* dbias = nullptr;        // zeroed by the caller; each of the bias's dimensions full or 1
  int64_t dbias_stride[4] = {};  // 0 where broadcast: the gradient is summed there
  float* dsink = nullptr;        // [H]
  float* dgate = nullptr;        // [H]
};

enum class MapMode : int { kMean, kFull, kKeys };

// p recomputed from lse, without dropout and gate. v is not read.
struct AttentionMap : AttentionProblem {
  MapMode mode;
  const float* lse;  // [2, B, H, Sq]
  float* map;        // contiguous; mean over heads: [B, Sq, Sk]; full: [B, H, Sq, Sk];
                     // keys, summed over queries and mean over heads: [B, Sk]
};

// One table for each instruction set.
struct AttentionKernels {
  int64_t (*kept_bytes)(const AttentionProblem&);
  void (*fwd)(const AttentionForward&);
  void (*bwd)(const AttentionBackward&);
  void (*map)(const AttentionMap&);
};

// Bytes that a forward with few queries may leave to its backward, which spares it the scores: no more than K and V take.
// 0: nothing. What one instruction set left another does not read; its backward does without.
int64_t attention_kept_bytes(const AttentionProblem& problem);
void attention_fwd(const AttentionForward& problem);
void attention_bwd(const AttentionBackward& problem);
void attention_map(const AttentionMap& problem);

}  // namespace fastfuse::cpu
