// Backward of fused attention on Hopper. Formulas and letters as in fastfuse/attention.h.
#pragma once

#include "fastfuse/cuda_attention.h"

namespace fastfuse::cuda {

struct AttentionBackward : AttentionProblem {
  Rows dout;          // [B, H, Sq, Dv], aligned as q
  Rows out;           // [B, H, Sq, Dv], after the gate; aligned as q
  const float* lse;   // [2, B, H, Sq]
  const float* dlse;  // [B, H, Sq] or null

  // Any gradient may be null: not wanted.
  void* dq;  // [B, H, Sq, D] contiguous
  void* dk;  // [B, Hk, Sk, D] contiguous
  void* dv;  // [B, Hk, Sk, Dv] contiguous

  // The scores' gradient before softcap: the bias's gradient where the bias is full, else what dbias is summed from.
  // Zeroed by the caller where there are spans: keys that no row of a tile sees are not written.
  void* ds;          // [B, H, Sq, ds_pitch] contiguous
  int ds_pitch;      // Sk, or more, up to the next multiple of 8: those keys get zeros
  DType ds_dtype;    // float32 or q's
  void* dbias;       // [bias_size] contiguous, bias_dtype; null where ds is it
  int bias_size[4];  // each full or 1

  float* dsink;  // [H]
  float* dgate;  // [H]

  float* rows;     // [attention_bwd_rows_size] scratch: attention_bwd_tile.cuh
  float* dq_sums;  // [attention_bwd_sums_size] scratch, or null where that is 0
  int32_t* spans;  // [attention_bwd_spans_size] scratch, or null where that is 0
};

int64_t attention_bwd_rows_size(const AttentionBackward& params);
cudaError_t attention_bwd_sums_size(const AttentionBackward& params, int64_t* size);  // for the current device
int64_t attention_bwd_spans_size(const AttentionBackward& params);
cudaError_t attention_bwd(const AttentionBackward& params, cudaStream_t stream);

}  // namespace fastfuse::cuda
