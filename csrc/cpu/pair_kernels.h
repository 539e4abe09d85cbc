// The contrastive kernels of one instruction set, and the table that pair.cpp chooses from.
#pragma once

#include "fastfuse/pair.h"
#include "fastfuse/retrieval.h"

namespace fastfuse::cpu {

struct PairKernels {
  void (*softmax_fwd)(const PairSoftmaxFwd&, const ThreadPool&);
  void (*softmax_bwd)(const PairSoftmaxBwd&, const ThreadPool&);
  void (*sigmoid)(const PairSigmoid&, const ThreadPool&);
  void (*scaled)(const Scaled&, const ThreadPool&);
  void (*topk)(const TopkParams&, const ThreadPool&);
  void (*ranks)(const RanksParams&, const ThreadPool&);
};

namespace portable {
extern const PairKernels pair_kernels;
}
namespace avx2 {
extern const PairKernels pair_kernels;
}
namespace avx512 {
extern const PairKernels pair_kernels;
}
namespace avx512bf16 {
extern const PairKernels pair_kernels;
}
namespace amx {
extern const PairKernels pair_kernels;
}

}  // namespace fastfuse::cpu
