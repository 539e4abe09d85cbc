// The sweep that every kernel over pairs is: a block walks along its tiles,
//
//     producer     A and B of the tile, 64 features at a time, into a ring of stages; what else is known of its columns
//     consumers    products = A B^T;   kind.tile(products)
//
// and a Kind says what becomes of a tile's products. It has
//
//     C, Element, Arguments        the last derives from SweepArguments
//     stage_column(args, shared, stage, column, j)      by the producer: the values of column j of the problem
//     looks_at_all(args)                                whether every tile has to be looked at, see load_labels
//     Kind(args, shared, who)      a consumer's thread
//     begin_rows(row), end_rows(row)                    of tiles
//     tile(stage, marked, products)
//     finish()
//
// Thread and element as in hopper/wgmma.h: products[4 j + 2 h + c] is row h of the thread's two, column
// 8 j + 2 (lane % 4) + c of the tile.
#pragma once

#include "cuda/pair_config.h"
#include "cuda/pair_tiles.cuh"
#include "cuda/ring.cuh"
#include "cuda/two.cuh"

namespace fastfuse::cuda {

struct SweepArguments {
  TensorMap a, b;  // (D, N) and (D, M), boxes of (64, kBlockM) and (64, kBlockN)
  PairTiles tiles;
  int steps;  // of 64 features
};

// Who a consumer's thread is.
struct PairThread {
  int warpgroup, warp, lane;  // 0 or 1, 0..3, 0..31

  FF_DEVICE int thread() const { return warp * 32 + lane; }
  FF_DEVICE int row(int h) const { return warpgroup * 64 + warp * 16 + lane / 4 + 8 * h; }  // of the tile
  FF_DEVICE int col(int j) const { return 8 * j + 2 * (lane % 4); }
};

// One thread.
template <class C>
FF_DEVICE void load_features(const SweepArguments& args, const PairShared<C>& shared) {
  Ring<C::kStages> ring;
  const int block = block_index();
  for (TileWalk at(args.tiles, block); at.there(args.tiles, block); at.next(args.tiles, block)) {
    for (int step = 0; step < args.steps; step++) {
      const uint32_t full = shared.full(ring.stage);
      mbarrier_wait(shared.empty(ring.stage), ring.parity ^ 1);
      mbarrier_arrive_expect(full, C::kABytes + C::kBBytes);
      tma_load(&args.a, full, shared.a(ring.stage), step * C::kStep, at.row * C::kBlockM);
      tma_load(&args.b, full, shared.b(ring.stage), step * C::kStep, at.col * C::kBlockN);
      ring.advance();
    }
  }
}

// Least and largest label of a warp's.
struct LabelRange {
  int64_t least = INT64_MAX, largest = INT64_MIN;

  FF_DEVICE void take(int64_t label) {
    if (label < least) least = label;
    if (label > largest) largest = label;
  }
  FF_DEVICE void share() {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) {
      take(shuffle_xor(least, mask));
      take(shuffle_xor(largest, mask));
    }
  }
  FF_DEVICE bool meets(const LabelRange& other) const { return least <= other.largest && other.least <= largest; }
};

FF_DEVICE LabelRange range_of_rows(const int64_t* labels, int first, int n, int lane) {
  LabelRange range;
#pragma unroll 1
  for (int i = lane; i < kPairBlockM; i += 32) {
    if (first + i < n) range.take(load_global(labels + first + i));
  }
  range.share();
  return range;
}

// One warp: the keys (of 0) or skips (of 1) of each tile's columns, and whether any pair has to be looked at for their
// sake, or because it may not be there.
template <class C>
FF_DEVICE void load_labels(const SweepArguments& args, const PairProblem& p, const PairShared<C>& shared, int of,
                           int lane) {
  const int64_t* row_labels = of == 0 ? p.labels.row_key : p.labels.row_skip;
  const int64_t* col_labels = of == 0 ? p.labels.col_key : p.labels.col_skip;
  Ring<C::kColumnStages> ring;
  LabelRange rows;
  int row = -1;
  const int block = block_index();
  for (TileWalk at(args.tiles, block); at.there(args.tiles, block); at.next(args.tiles, block)) {
    if (at.row != row && row_labels) rows = range_of_rows(row_labels, at.row * C::kBlockM, p.a.n, lane);
    row = at.row;
    mbarrier_wait(shared.columns_empty(ring.stage), ring.parity ^ 1);
    bool look = (at.row + 1) * C::kBlockM > p.a.n || (at.col + 1) * C::kBlockN > p.b.n;
    look |= p.symmetric && at.col * C::kBlockN < (at.row + 1) * C::kBlockM;
    if (col_labels) {
      LabelRange columns;
#pragma unroll 4
      for (int column = lane; column < C::kBlockN; column += 32) {
        const int j = at.col * C::kBlockN + column;
        const int64_t label = load_global(col_labels + (j < p.b.n ? j : p.b.n - 1));
        columns.take(label);
        store_shared(shared.label(ring.stage, of, column), label);
      }
      columns.share();
      look |= columns.meets(rows);
    }
    if (lane == 0) store_shared(shared.marked(ring.stage, of), int32_t(look));
    mbarrier_arrive(shared.columns_full(ring.stage));
    ring.advance();
  }
}

// One warp: which tile it is, and what else a Kind needs of its columns.
template <class Kind>
FF_DEVICE void load_values(const typename Kind::Arguments& args, const PairShared<typename Kind::C>& shared, int lane) {
  using C = typename Kind::C;
  Ring<C::kColumnStages> ring;
  const int block = block_index();
  for (TileWalk at(args.tiles, block); at.there(args.tiles, block); at.next(args.tiles, block)) {
    mbarrier_wait(shared.columns_empty(ring.stage), ring.parity ^ 1);
#pragma unroll 2
    for (int column = lane; column < C::kBlockN; column += 32)
      Kind::stage_column(args, shared, ring.stage, column, at.col * C::kBlockN + column);
    if (lane == 0) {
      const int32_t first_meeting = at.first_meeting(args.tiles, block);
      store_shared(shared.place(ring.stage), Two<int32_t>{at.col * C::kBlockN, first_meeting});
    }
    mbarrier_arrive(shared.columns_full(ring.stage));
    ring.advance();
  }
}

// products = A B^T of a tile. When step `announced` is on its way, warpgroup 1 may begin.
template <class C>
FF_DEVICE void multiply(const PairShared<C>& shared, const PairThread& who, int steps, int announced,
                        Ring<C::kStages>& ring, float (&products)[C::kProducts]) {
  const auto release = [&](int stage) {
    if (who.lane == 0) mbarrier_arrive(shared.empty(stage));
  };
  int before = 0;
  for (int step = 0; step < steps; step++) {
    mbarrier_wait(shared.full(ring.stage), ring.parity);
    const uint32_t rows = shared.a(ring.stage) + who.warpgroup * 64 * C::kRowBytes;
    const uint64_t a = matrix_descriptor(rows, 1024, Swizzle::k128);
    const uint64_t b = matrix_descriptor(shared.b(ring.stage), 1024, Swizzle::k128);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < C::kStep / 16; k++) {
      wgmma<typename C::Element>(products, advanced(a, 32 * k), advanced(b, 32 * k), step > 0 || k > 0);
    }
    wgmma_commit();
    if (step == announced) named_barrier_arrive(C::kLeadBarrier, 128 * C::kConsumers);
    if (step > 0) {
      wgmma_wait<1>();
      release(before);
    }
    before = ring.stage;
    ring.advance();
  }
  wgmma_wait<0>();
  release(before);
}

// Warpgroup 1 begins as many steps later as the ring allows, and stays behind: one has the tensor cores while the other
// works on its products. Rows and tiles are only counted here: for a walk along the columns registers are too few.
template <class Kind>
FF_DEVICE void consume(const typename Kind::Arguments& args, const PairShared<typename Kind::C>& shared,
                       const PairThread& who) {
  using C = typename Kind::C;
  Ring<C::kStages> ring;
  Ring<C::kColumnStages> columns;
  Kind kind(args, shared, who);
  int announced = -1;
  if (who.warpgroup == 1) {
    named_barrier_sync(C::kLeadBarrier, 128 * C::kConsumers);
  } else {
    announced = args.steps < C::kStages ? args.steps - 1 : C::kStages - 2;
  }
  const int block = block_index();
  for (int row = args.tiles.first_row(block); args.tiles.before(row) < args.tiles.end(block); row++) {
    kind.begin_rows(row);
    for (int left = args.tiles.tiles_of_row(block, row); left > 0; left--) {
      float products[C::kProducts];
      multiply(shared, who, args.steps, announced, ring, products);
      announced = -1;
      mbarrier_wait(shared.columns_full(columns.stage), columns.parity);
      const Two<int32_t> marked = load_two<int32_t>(shared.marked(columns.stage, 0));
      kind.tile(columns.stage, marked.at[0] || marked.at[1] || Kind::looks_at_all(args), products);
      warp_sync();
      if (who.lane == 0) mbarrier_arrive(shared.columns_empty(columns.stage));
      columns.advance();
    }
    kind.end_rows(row);
  }
  kind.finish();
}

template <class Kind>
FF_KERNEL(Kind::C::kThreads)
pair_sweep_kernel(const FF_GRID_CONSTANT typename Kind::Arguments args) {
  using C = typename Kind::C;
  const PairShared<C> shared{shared_memory()};
  const int warpgroup = warp_uniform(thread_index() / 128), warp = thread_index() / 32 % 4;
  const int lane = thread_index() % 32;
  if (thread_index() == 0) {
    for (int stage = 0; stage < C::kStages; stage++) {
      mbarrier_init(shared.full(stage), 1);
      mbarrier_init(shared.empty(stage), C::kConsumerWarps);
    }
    for (int stage = 0; stage < C::kColumnStages; stage++) {
      mbarrier_init(shared.columns_full(stage), 3 * 32);
      mbarrier_init(shared.columns_empty(stage), C::kConsumerWarps);
    }
    mbarrier_init_fence();
  }
  block_sync();
  if (warpgroup == 0) {
    decrease_registers<C::kProducerRegisters>();
    if (warp == 0 && lane == 0) load_features(args, shared);
    if (warp == 1 || warp == 2) load_labels(args, args.p, shared, warp - 1, lane);
    if (warp == 3) load_values<Kind>(args, shared, lane);
  } else {
    increase_registers<C::kConsumerRegisters>();
    consume<Kind>(args, shared, PairThread{warpgroup - 1, warp, lane});
  }
}

inline cudaError_t feature_map(TensorMap* map, const PairSide& side, int box_rows) {
  const int64_t sizes[2] = {side.dim, side.n}, strides[2] = {1, side.pitch};
  const int box[2] = {64, box_rows};
  return make_tensor_map(map, side.rows, 2, sizes, strides, box, Swizzle::k128);
}

// Fills SweepArguments, whose tiles are there already, and launches.
template <class Kind>
cudaError_t launch_sweep(typename Kind::Arguments& args, cudaStream_t stream) {
  using C = typename Kind::C;
  args.steps = (args.p.a.dim + C::kStep - 1) / C::kStep;
  cudaError_t error = feature_map(&args.a, args.p.a, C::kBlockM);
  if (error == cudaSuccess) error = feature_map(&args.b, args.p.b, C::kBlockN);
  if (error != cudaSuccess) return error;
  return launch(pair_sweep_kernel<Kind>, args.tiles.blocks, C::kThreads, C::kSharedBytes, stream, args);
}

}  // namespace fastfuse::cuda
