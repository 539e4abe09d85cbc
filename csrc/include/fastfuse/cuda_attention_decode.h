// Forward for few queries of many keys: keys are split over blocks. The same result as attention_fwd's.
#pragma once

#include "fastfuse/cuda_attention.h"

namespace fastfuse::cuda {

// Query rows that share a key head, (H / Hk) Sq, that it takes; and what it leaves of `schedule`: nothing.
inline constexpr int kDecodeRows = 64;

// How many blocks share the keys of a key head, for the current device.
cudaError_t attention_decode_splits(const AttentionForward& params, int* splits);
// partial: float [splits, B, H, Sq, Dv + 2] scratch.
cudaError_t attention_decode(const AttentionForward& params, int splits, float* partial, cudaStream_t stream);

}  // namespace fastfuse::cuda
