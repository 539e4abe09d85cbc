// Chooses the instruction set of each call.
#include "fastfuse/attention.h"

namespace fastfuse::cpu {

namespace portable {
extern const AttentionKernels attention_kernels;
}
namespace avx2 {
extern const AttentionKernels attention_kernels;
}
namespace avx512 {
extern const AttentionKernels attention_kernels;
}
namespace avx512bf16 {
extern const AttentionKernels attention_kernels;
}
namespace amx {
extern const AttentionKernels attention_kernels;
}

namespace {

const AttentionKernels& kernels() {
  switch (current_isa()) {
#if FASTFUSE_HAVE_AMX
    case Isa::kAmx:
      return amx::attention_kernels;
#endif
#if FASTFUSE_HAVE_AVX512BF16
    case Isa::kAvx512Bf16:
      return avx512bf16::attention_kernels;
#endif
#if FASTFUSE_HAVE_AVX512
    case Isa::kAvx512:
      return avx512::attention_kernels;
#endif
#if FASTFUSE_HAVE_AVX2
    case Isa::kAvx2:
      return avx2::attention_kernels;
#endif
    default:
      return portable::attention_kernels;
  }
}

}  // namespace

void attention_fwd(const AttentionForward& problem) { kernels().fwd(problem); }
void attention_bwd(const AttentionBackward& problem) { kernels().bwd(problem); }
void attention_map(const AttentionMap& problem) { kernels().map(problem); }

}  // namespace fastfuse::cpu
