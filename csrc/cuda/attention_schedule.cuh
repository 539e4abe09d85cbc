// Which keys each tile of queries sees at all, and the tiles in order of that: longest first, so that the blocks of a
// persistent grid end together.
//
//     schedule   [tiles][2]   key_begin, key_end of tile = batch * blocks + block, equal where nothing is seen
//                [tiles]      tiles, longest first
#pragma once

#include "cuda/attention_tile.cuh"

namespace fastfuse::cuda {

struct ScheduleArguments {
  AttentionProblem problem;
  int32_t* schedule;
  int blocks, block_rows;
};

inline constexpr int kScheduleThreads = 256;

// A warp for each tile.
static FF_KERNEL(kScheduleThreads) tile_spans_kernel(const FF_GRID_CONSTANT ScheduleArguments args) {
  const AttentionProblem& p = args.problem;
  const int warps = kScheduleThreads / 32, lane = thread_index() % 32;
  const int tile = block_index() * warps + thread_index() / 32;
  if (tile >= p.batch * args.blocks) return;
  const QueryTile t{tile / args.blocks, 0, tile % args.blocks * args.block_rows, 0, 0};
  int begin = p.seq_k, end = 0;
  for (int i = lane; i < args.block_rows; i += 32) {
    const QueryRow r = query_row(p, t, t.first + i);
    if (!r.exists || r.lo >= r.hi) continue;
    begin = smaller(begin, r.lo);
    end = larger(end, r.hi);
  }
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) {
    begin = smaller(begin, shuffle_xor(begin, mask));
    end = larger(end, shuffle_xor(end, mask));
  }
  if (lane > 0) return;
  begin = begin / 8 * 8;
  store_global(args.schedule + 2 * tile, begin < end ? begin : 0);
  store_global(args.schedule + 2 * tile + 1, begin < end ? end : 0);
}

// One block: a counting sort.
static FF_KERNEL(kScheduleThreads) tile_order_kernel(const FF_GRID_CONSTANT ScheduleArguments args) {
  const AttentionProblem& p = args.problem;
  const int tiles = p.batch * args.blocks, thread = thread_index();
  const uint32_t counts = shared_memory();  // int[kScheduleThreads]: tiles of a length, then where the next one goes
  const auto bucket = [&](int tile) {
    const int64_t length = load_global(args.schedule + 2 * tile + 1) - load_global(args.schedule + 2 * tile);
    return counts + 4 * (kScheduleThreads - 1 - int(length * (kScheduleThreads - 1) / p.seq_k));
  };
  store_shared(counts + 4 * thread, 0);
  block_sync();
  for (int tile = thread; tile < tiles; tile += kScheduleThreads) atomic_add_shared(bucket(tile), 1);
  block_sync();
  int before = 0;
  for (int i = 0; i < thread; i++) before += load_shared<int>(counts + 4 * i);
  block_sync();
  store_shared(counts + 4 * thread, before);
  block_sync();
  for (int tile = thread; tile < tiles; tile += kScheduleThreads)
    store_global(args.schedule + 2 * tiles + atomic_add_shared(bucket(tile), 1), tile);
}

inline cudaError_t schedule_tiles(const ScheduleArguments& args, cudaStream_t stream) {
  const int tiles = args.problem.batch * args.blocks, warps = kScheduleThreads / 32;
  const cudaError_t error = launch(tile_spans_kernel, (tiles + warps - 1) / warps, kScheduleThreads, 0, stream, args);
  if (error != cudaSuccess) return error;
  return launch(tile_order_kernel, 1, kScheduleThreads, 4 * kScheduleThreads, stream, args);
}

}  // namespace fastfuse::cuda
