// wgmma: d[64][N] += a[64][16] b[16][N] by a warpgroup, 16-bit inputs and float sums, asynchronous.
//
// A batch is   wgmma_fence(); products ...; wgmma_commit();   and its results are there, and its operands free, after
// wgmma_wait<n>() with at most n batches committed since. Until then nobody touches its registers.
//
// Thread t of the warpgroup holds of d, with row = 16 (t / 32) + t % 32 / 4 and column = 8 j + 2 (t % 4):
//     d[4 j + 0, 1] = (row, column + 0, 1)      d[4 j + 2, 3] = (row + 8, column + 0, 1)
// and of a from registers:
//     a[0] = (row, column 2 (t % 4) + 0, 1)     a[1] = (row + 8, the same)     a[2], a[3] = columns + 8
// so that the sums of one product, rounded, serve as a of the next.
#pragma once

#include "cuda/hopper/launch.h"
#include "cuda/hopper/swizzle.h"
#include "cuda/hopper/wgmma_shapes.h"
#include "fastfuse/dtype.h"

namespace fastfuse::hopper {

FF_DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
FF_DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending>
FF_DEVICE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

template <class T, int N>
struct Wgmma;

#define FF_DEFINE_WGMMA(T, TYPE, N, I0, I1, I2, I3, I4, I5, I6)                                          \
  template <>                                                                                            \
  struct Wgmma<T, N> {                                                                                   \
    template <Major kA, Major kB>                                                                        \
    static FF_DEVICE void shared(float (&d)[N / 2], uint64_t a, uint64_t b, int accumulate) {            \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #I2                                              \
                   ", 0;\n"                                                                              \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" FF_LIST_##N      \
                   "}, %" #I0 ", %" #I1 ", p, 1, 1, %" #I3 ", %" #I4 ";\n}\n"                            \
                   : FF_BIND_##N                                                                         \
                   : "l"(a), "l"(b), "r"(accumulate), "n"(int(kA)), "n"(int(kB)));                       \
    }                                                                                                    \
    template <Major kB>                                                                                  \
    static FF_DEVICE void registers(float (&d)[N / 2], const uint32_t* a, uint64_t b, int accumulate) {  \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #I5                                              \
                   ", 0;\n"                                                                              \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" FF_LIST_##N      \
                   "}, {%" #I0 ", %" #I1 ", %" #I2 ", %" #I3 "}, %" #I4 ", p, 1, 1, %" #I6 ";\n}\n"      \
                   : FF_BIND_##N                                                                         \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(int(kB))); \
    }                                                                                                    \
  };
#define FF_DEFINE_WGMMA_BF16(...) FF_DEFINE_WGMMA(bf16, "bf16", __VA_ARGS__)
#define FF_DEFINE_WGMMA_F16(...) FF_DEFINE_WGMMA(f16, "f16", __VA_ARGS__)
FF_WGMMA_SHAPES(FF_DEFINE_WGMMA_BF16)
FF_WGMMA_SHAPES(FF_DEFINE_WGMMA_F16)
#undef FF_DEFINE_WGMMA_F16
#undef FF_DEFINE_WGMMA_BF16
#undef FF_DEFINE_WGMMA

// T: bf16 or f16, of both operands. a and b: matrix_descriptor. Without `accumulate`, d starts from 0.
template <class T, Major kA = Major::kContraction, Major kB = Major::kContraction, int kCount>
FF_DEVICE void wgmma(float (&d)[kCount], uint64_t a, uint64_t b, bool accumulate) {
  Wgmma<T, kCount * 2>::template shared<kA, kB>(d, a, b, accumulate);
}
// a: four registers of this thread.
template <class T, Major kB = Major::kContraction, int kCount>
FF_DEVICE void wgmma(float (&d)[kCount], const uint32_t* a, uint64_t b, bool accumulate) {
  Wgmma<T, kCount * 2>::template registers<kB>(d, a, b, accumulate);
}

}  // namespace fastfuse::hopper
