// Chooses the contrastive kernels of the current instruction set.
#include "cpu/pair_kernels.h"

namespace fastfuse::cpu {
namespace {

const PairKernels& kernels() {
  switch (current_isa()) {
#if FASTFUSE_HAVE_AMX
    case Isa::kAmx:
      return amx::pair_kernels;
#endif
#if FASTFUSE_HAVE_AVX512BF16
    case Isa::kAvx512Bf16:
      return avx512bf16::pair_kernels;
#endif
#if FASTFUSE_HAVE_AVX512
    case Isa::kAvx512:
      return avx512::pair_kernels;
#endif
#if FASTFUSE_HAVE_AVX2
    case Isa::kAvx2:
      return avx2::pair_kernels;
#endif
    default:
      return portable::pair_kernels;
  }
}

}  // namespace

int64_t pair_kept_bytes(const PairProblem& p) {
  constexpr int64_t kSquare = 128;  // kStrip
  const int64_t rows = (p.a.rows + kSquare - 1) / kSquare, cols = (p.b.rows + kSquare - 1) / kSquare;
  const int64_t squares = p.symmetric ? rows * (rows + 1) / 2 : rows * cols;
  const int64_t bytes = squares * (p.a.dtype == DType::kFloat32 ? kSquare * kSquare * 4 : kSquare * kSquare * 2 + 64);
  return bytes <= kKeptBytes ? bytes : 0;
}

void pair_softmax_fwd(const PairSoftmaxFwd& params, const ThreadPool& pool) { kernels().softmax_fwd(params, pool); }
void pair_softmax_bwd(const PairSoftmaxBwd& params, const ThreadPool& pool) { kernels().softmax_bwd(params, pool); }
void pair_sigmoid(const PairSigmoid& params, const ThreadPool& pool) { kernels().sigmoid(params, pool); }
void scaled(const Scaled& params, const ThreadPool& pool) { kernels().scaled(params, pool); }
void similarity_topk(const TopkParams& params, const ThreadPool& pool) { kernels().topk(params, pool); }
void retrieval_ranks(const RanksParams& params, const ThreadPool& pool) { kernels().ranks(params, pool); }

}  // namespace fastfuse::cpu
