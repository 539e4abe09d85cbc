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

const AttentionKernels& kernels_of(Isa isa) {
  switch (isa) {
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

const AttentionKernels& kernels() { return kernels_of(current_isa()); }

// What is kept begins with the instruction set that wrote it, on a cache line of its own.
constexpr int64_t kLine = 64;

char* after_line(void* kept) { return static_cast<char*>(kept) + kLine; }

}  // namespace

int64_t attention_kept_bytes(const AttentionProblem& problem) {
  const int64_t bytes = kernels().kept_bytes(problem);
  return bytes ? kLine + bytes : 0;
}

void attention_fwd(const AttentionForward& problem) {
  const Isa isa = current_isa();
  AttentionForward p = problem;
  if (p.kept) {
    *static_cast<Isa*>(p.kept) = isa;
    p.kept = after_line(p.kept);
  }
  kernels_of(isa).fwd(p);
}

void attention_bwd(const AttentionBackward& problem) {
  const Isa isa = current_isa();
  AttentionBackward p = problem;
  if (p.kept) p.kept = *static_cast<Isa*>(p.kept) == isa ? after_line(p.kept) : nullptr;
  kernels_of(isa).bwd(p);
}

void attention_map(const AttentionMap& problem) { kernels().map(problem); }

}  // namespace fastfuse::cpu
