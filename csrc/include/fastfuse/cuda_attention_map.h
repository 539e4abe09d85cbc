// Attention maps on Hopper: p = exp(s - lse), before dropout and gate. Formulas and letters as in fastfuse/attention.h.
#pragma once

#include "fastfuse/cuda_attention.h"

namespace fastfuse::cuda {

enum class MapMode : int { kMean, kFull, kKeys };

struct AttentionMap : AttentionProblem {  // v, sink, gate and dropout are not read
  MapMode mode;
  const float* lse;  // [2, B, H, Sq]
  float* map;        // contiguous; mean over heads: [B, Sq, Sk]; full: [B, H, Sq, Sk];
                     // keys, summed over queries and mean over heads: [B, Sk]
};

cudaError_t attention_map(const AttentionMap& params, cudaStream_t stream);

}  // namespace fastfuse::cuda
