// What forward left of a row's log-sum-exp, in units of log2: p = exp2(x - high - low).
#pragma once

#include "cuda/hopper.h"
#include "fastfuse/cuda_attention.h"

namespace fastfuse::cuda {

using namespace hopper;

FF_DEVICE float plus_infinity() { return float_of_bits(0x7f800000u); }

struct LogSum {
  float high, low;  // +inf, 0 where the row sees nothing
};

// lse: [2, B, H, Sq], natural log and what its rounding left out; at: of [B, H, Sq].
FF_DEVICE LogSum log_sum(const AttentionProblem& p, const float* lse, int64_t at) {
  constexpr float kLog2e = 1.4426950216293335f, kLog2eRest = 1.92596299e-8f;
  const float natural = load_global(lse + at);
  if (!(natural > -plus_infinity())) return {plus_infinity(), 0};
  const float rest = load_global(lse + int64_t(p.batch) * p.heads * p.seq_q + at);
  const float high = multiply_exactly(natural, kLog2e);
  return {high, fused_multiply_add(natural, kLog2e, -high) + natural * kLog2eRest + rest * kLog2e};
}

}  // namespace fastfuse::cuda
