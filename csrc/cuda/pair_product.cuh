// T = G F, or T = G^T F, of 16-bit G and features F, summed in float32 and in the order of the contraction.
//
//     producer     G and F, 64 of the contraction at a time, into a ring of stages
//     consumers    64 rows of the tile each
//
//     0      mbarriers
//     1024   G   [kStages]: [128][64] along the contraction, or transposed [2 slabs][64][64] across it
//            F   [kStages][kSlabs][64][64]   a slab is 64 of the features
#pragma once

#include "cuda/ring.cuh"
#include "cuda/two.cuh"
#include "fastfuse/cuda_pair.h"

namespace fastfuse::cuda {

using namespace hopper;

// kWidth: features of a tile.
template <class Element_, int kWidth_, bool kTransposed_>
struct ProductConfig {
  using Element = Element_;
  static constexpr int kWidth = kWidth_;
  static constexpr bool kTransposed = kTransposed_;

  static constexpr int kBlockM = 128, kStep = 64, kStages = 4, kSlabs = kWidth / 64;
  static constexpr int kConsumers = 2, kThreads = 128 * (kConsumers + 1);
  static constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;
  static constexpr int kSlabBytes = 64 * 128, kGBytes = 2 * kSlabBytes, kFBytes = kSlabs * kSlabBytes;
  static constexpr int kG = 1024, kF = kG + kStages * kGBytes, kSharedBytes = kF + kStages * kFBytes;
  static_assert(kSharedBytes <= 227 * 1024);
};

struct ProductArguments {
  TensorMap g;  // (cols, rows), boxes of (64, 128); transposed (64, 64)
  TensorMap f;  // (dim, contraction), boxes of (64, 64)
  float* t;     // [rows][pitch]
  int64_t pitch;
  int rows, steps;   // steps: of 64 along the contraction
  int widths, work;  // tiles along the features, in all
  bool accumulate;
};

template <class C>
struct ProductShared {
  uint32_t base;

  FF_DEVICE uint32_t g(int stage) const { return base + C::kG + stage * C::kGBytes; }
  FF_DEVICE uint32_t f(int stage) const { return base + C::kF + stage * C::kFBytes; }
  // mbarriers: a stage is full when its data is there, and empty when every consumer's warp is done with it.
  FF_DEVICE uint32_t full(int stage) const { return base + 8 * stage; }
  FF_DEVICE uint32_t empty(int stage) const { return base + 64 + 8 * stage; }
};

// One thread.
template <class C>
FF_DEVICE void load_factors(const ProductArguments& args, const ProductShared<C>& shared) {
  Ring<C::kStages> ring;
  for (int work = block_index(); work < args.work; work += grid_blocks()) {
    const int row = work / args.widths * C::kBlockM, feature = work % args.widths * C::kWidth;
    for (int step = 0; step < args.steps; step++) {
      const uint32_t full = shared.full(ring.stage), g = shared.g(ring.stage);
      mbarrier_wait(shared.empty(ring.stage), ring.parity ^ 1);
      mbarrier_arrive_expect(full, C::kGBytes + C::kFBytes);
      if constexpr (C::kTransposed) {
        tma_load(&args.g, full, g, row, step * C::kStep);
        tma_load(&args.g, full, g + C::kSlabBytes, row + 64, step * C::kStep);
      } else {
        tma_load(&args.g, full, g, step * C::kStep, row);
      }
#pragma unroll
      for (int slab = 0; slab < C::kSlabs; slab++)
        tma_load(&args.f, full, shared.f(ring.stage) + slab * C::kSlabBytes, feature + slab * 64, step * C::kStep);
      ring.advance();
    }
  }
}

template <class C>
FF_DEVICE void multiply_factors(const ProductArguments& args, const ProductShared<C>& shared, int warpgroup, int warp,
                                int lane) {
  constexpr Major kMajor = C::kTransposed ? Major::kOutput : Major::kContraction;
  constexpr int kGStep = C::kTransposed ? 16 * 128 : 32;  // bytes to 16 further along the contraction
  Ring<C::kStages> ring;
  const auto release = [&](int stage) {
    if (lane == 0) mbarrier_arrive(shared.empty(stage));
  };
  for (int work = block_index(); work < args.work; work += grid_blocks()) {
    float sums[C::kWidth / 2];
    int before = 0;
    for (int step = 0; step < args.steps; step++) {
      mbarrier_wait(shared.full(ring.stage), ring.parity);
      const uint32_t g = shared.g(ring.stage) + warpgroup * C::kSlabBytes, f = shared.f(ring.stage);
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < C::kStep / 16; k++) {
        wgmma<typename C::Element, kMajor, Major::kOutput>(
            sums, matrix_descriptor(g + k * kGStep, 1024, Swizzle::k128),
            matrix_descriptor(f + k * 16 * 128, 1024, Swizzle::k128, C::kSlabBytes), step > 0 || k > 0);
      }
      wgmma_commit();
      if (step > 0) {
        wgmma_wait<1>();
        release(before);
      }
      before = ring.stage;
      ring.advance();
    }
    wgmma_wait<0>();
    release(before);
    const int first = work / args.widths * C::kBlockM + warpgroup * 64 + warp * 16 + lane / 4;
    const int feature = work % args.widths * C::kWidth + 2 * (lane % 4);
#pragma unroll
    for (int i = 0; i < C::kWidth / 2; i += 2) {
      const int row = first + i % 4 * 4, column = feature + i / 4 * 8;
      if (row >= args.rows || column >= args.pitch) continue;
      auto* to = reinterpret_cast<Two<float>*>(args.t + row * args.pitch + column);
      Two<float> sum{sums[i], sums[i + 1]};
      if (args.accumulate) sum = {to->at[0] + sum.at[0], to->at[1] + sum.at[1]};
      store_global(to, sum);
    }
  }
}

template <class C>
FF_KERNEL(C::kThreads)
pair_product_kernel(const FF_GRID_CONSTANT ProductArguments args) {
  const ProductShared<C> shared{shared_memory()};
  const int warpgroup = thread_index() / 128, warp = thread_index() / 32 % 4, lane = thread_index() % 32;
  if (thread_index() == 0) {
    for (int stage = 0; stage < C::kStages; stage++) {
      mbarrier_init(shared.full(stage), 1);
      mbarrier_init(shared.empty(stage), 4 * C::kConsumers);
    }
    mbarrier_init_fence();
  }
  block_sync();
  if (warpgroup == 0) {
    decrease_registers<C::kProducerRegisters>();
    if (warp == 0 && lane == 0) load_factors(args, shared);
  } else {
    increase_registers<C::kConsumerRegisters>();
    multiply_factors(args, shared, warpgroup - 1, warp, lane);
  }
}

}  // namespace fastfuse::cuda
