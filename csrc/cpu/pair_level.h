// Compiled once per instruction set: its table of contrastive kernels.
#pragma once

#include "cpu/pair_kernels.h"
#include "cpu/pair_sigmoid.h"
#include "cpu/pair_softmax_bwd.h"
#include "cpu/pair_softmax_fwd.h"
#include "cpu/ranks.h"
#include "cpu/scaled.h"
#include "cpu/topk.h"

namespace fastfuse::cpu::FASTFUSE_ISA {

// AMX and AVX-512-BF16 multiply bfloat16 as it is; everything else is multiplied in float.
FF_INLINE bool in_bfloat16(const Features& x) {
#if defined(__AVX512BF16__)
  return x.dtype == DType::kBFloat16;
#else
  return false;
#endif
}

#if defined(__AVX512BF16__)
using Narrow = bf16;
#else
using Narrow = float;
#endif

const PairKernels pair_kernels = {
    [](const PairSoftmaxFwd& p, const ThreadPool& pool) {
      in_bfloat16(p.a) ? softmax_fwd<Narrow>(p, pool) : softmax_fwd<float>(p, pool);
    },
    [](const PairSoftmaxBwd& p, const ThreadPool& pool) {
      in_bfloat16(p.a) ? softmax_bwd<Narrow>(p, pool) : softmax_bwd<float>(p, pool);
    },
    [](const PairSigmoid& p, const ThreadPool& pool) {
      in_bfloat16(p.a) ? sigmoid_loss<Narrow>(p, pool) : sigmoid_loss<float>(p, pool);
    },
    [](const Scaled& p, const ThreadPool& pool) { scale_to(p, pool); },
    [](const TopkParams& p, const ThreadPool& pool) {
      in_bfloat16(p.queries) ? topk<Narrow>(p, pool) : topk<float>(p, pool);
    },
    [](const RanksParams& p, const ThreadPool& pool) {
      in_bfloat16(p.queries) ? ranks<Narrow>(p, pool) : ranks<float>(p, pool);
    },
};

}  // namespace fastfuse::cpu::FASTFUSE_ISA
