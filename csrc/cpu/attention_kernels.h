// The attention kernels of one instruction set: picks the arithmetic for each element type.
#pragma once

#include "cpu/attention_bwd.h"
#include "cpu/attention_engine_amx.h"
#include "cpu/attention_engine_float.h"
#include "cpu/attention_engine_pairs.h"
#include "cpu/attention_fwd.h"
#include "cpu/attention_map.h"

namespace fastfuse::cpu::FASTFUSE_ISA {

#if defined(__AMX_BF16__)
using BFloat16Engine = AmxEngine;
#elif defined(__AVX512BF16__)
using BFloat16Engine = PairEngine;
#else
using BFloat16Engine = FloatEngine<bf16>;
#endif

extern const AttentionKernels attention_kernels;
const AttentionKernels attention_kernels = {
    [](const AttentionProblem& p) {
      switch (p.dtype) {
        case DType::kBFloat16:
          return kept_bytes<BFloat16Engine>(p);
        case DType::kFloat16:
          return kept_bytes<FloatEngine<f16>>(p);
        default:
          return kept_bytes<FloatEngine<float>>(p);
      }
    },
    [](const AttentionForward& p) {
      switch (p.dtype) {
        case DType::kBFloat16:
          return attention_fwd<BFloat16Engine>(p);
        case DType::kFloat16:
          return attention_fwd<FloatEngine<f16>>(p);
        default:
          return attention_fwd<FloatEngine<float>>(p);
      }
    },
    [](const AttentionBackward& p) {
      switch (p.dtype) {
        case DType::kBFloat16:
          return attention_bwd<BFloat16Engine>(p);
        case DType::kFloat16:
          return attention_bwd<FloatEngine<f16>>(p);
        default:
          return attention_bwd<FloatEngine<float>>(p);
      }
    },
    [](const AttentionMap& p) {
      switch (p.dtype) {
        case DType::kBFloat16:
          return attention_map<BFloat16Engine>(p);
        case DType::kFloat16:
          return attention_map<FloatEngine<f16>>(p);
        default:
          return attention_map<FloatEngine<float>>(p);
      }
    },
};

}  // namespace fastfuse::cpu::FASTFUSE_ISA
