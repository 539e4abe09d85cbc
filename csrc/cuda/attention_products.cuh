// Products of attention's tiles by a warpgroup. In shared memory a tile [rows][columns] is slabs of 64 columns, their
// rows of 128 bytes swizzled; `slab` is the bytes of one. Each function issues one batch: wgmma_wait before its results.
#pragma once

#include "cuda/hopper.h"
#include "cuda/quad.cuh"

namespace fastfuse::cuda {

using namespace hopper;

// d = a b^T over kHeadDim columns: a[64][kHeadDim], b[N][kHeadDim].
template <class Element, int kHeadDim, int kCount>
FF_DEVICE void multiply_rows(float (&d)[kCount], uint32_t a, uint32_t a_slab, uint32_t b, uint32_t b_slab) {
  const uint64_t first_a = matrix_descriptor(a, 1024, Swizzle::k128);
  const uint64_t first_b = matrix_descriptor(b, 1024, Swizzle::k128);
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < kHeadDim / 16; step++) {
    wgmma<Element>(d, advanced(first_a, step / 4 * a_slab + step % 4 * 32),
                   advanced(first_b, step / 4 * b_slab + step % 4 * 32), step > 0);
  }
  wgmma_commit();
}

// d (+)= a b: a[64][K] rounded from the sums of a product, b[K][N] whose rows lie along the contraction.
template <class Element, int kCount, int kWeights>
FF_DEVICE void multiply_weights(float (&d)[kCount], const uint32_t (&a)[kWeights], uint32_t b, uint32_t b_slab,
                                bool accumulate) {
  const uint64_t first = matrix_descriptor(b, 1024, Swizzle::k128, b_slab);
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < kWeights / 4; step++) {
    wgmma<Element, Major::kOutput>(d, a + 4 * step, advanced(first, step * 2048), accumulate || step > 0);
  }
  wgmma_commit();
}

// Sums to a's registers.
template <class Element, int kCount>
FF_DEVICE void round_weights(const float (&x)[kCount], uint32_t (&weights)[kCount / 2]) {
#pragma unroll
  for (int i = 0; i < kCount / 2; i++) weights[i] = pack_pair<Element>(x[2 * i], x[2 * i + 1]);
}

// Row h of the thread's two, times factor, to row[dim] in global memory; all of a warp call it.
template <class Element, int kCount>
FF_DEVICE void write_row(const float (&sums)[kCount], int h, float factor, Element* row, int dim, bool exists) {
  const int quarter = thread_index() % 4;
#pragma unroll
  for (int j = 0; j < kCount / 4; j += 4) {
    uint32_t word[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const float* pair = sums + 4 * (j + i) + 2 * h;
      word[i] = pack_pair<Element>(pair[0] * factor, pair[1] * factor);
    }
    transpose_quad(word);
    const int column = (j + quarter) * 8;
    if (exists && column < dim)
      store_global(reinterpret_cast<uint4*>(row + column), uint4{word[0], word[1], word[2], word[3]});
  }
}

}  // namespace fastfuse::cuda
