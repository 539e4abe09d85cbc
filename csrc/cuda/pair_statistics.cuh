// The parts that a sweep has left of each line, merged in order.
#pragma once

#include "cuda/pair_line.cuh"

namespace fastfuse::cuda {

struct LineStatisticsArguments {
  PairTiles tiles;
  const float* row_parts;  // null: none for these lines
  const float* col_parts;
  int64_t col_pitch;
  int lines, others;
  bool uniform;
  PairStatistics to;
};

inline constexpr int kMergeWarps = 8, kMergeLines = 32, kMergeThreads = 32 * kMergeWarps;

// What a warp has of a line so far. What is no line's own logit is summed in double.
struct LineTotal {
  float top = kHidden, rest = 0;
  double positives = 0, sum = 0;
  int count = 0;

  FF_DEVICE void take(const float* part, int64_t pitch, bool uniform) {
    merge_lines(load_global(part + kTop * pitch), load_global(part + kRest * pitch), top, rest);
    positives += load_global(part + kPositives * pitch);
    count += int(load_global(part + kCount * pitch));
    if (uniform) sum += load_global(part + kSum * pitch);
  }
  FF_DEVICE void take(const LineTotal& other) {
    merge_lines(other.top, other.rest, top, rest);
    positives += other.positives;
    count += other.count;
    sum += other.sum;
  }
};

// 32 lines a block; its warps share their parts.
static FF_KERNEL(kMergeThreads) pair_statistics_kernel(const FF_GRID_CONSTANT LineStatisticsArguments args) {
  const int warp = thread_index() / 32, lane = thread_index() % 32;
  const int line = block_index() * kMergeLines + lane;
  LineTotal total;
  int part = 0;
  const auto mine = [&] { return line < args.lines && part++ % kMergeWarps == warp; };
  if (args.row_parts) {
    const int row = block_index() * kMergeLines / kPairBlockM;
    for_owners_of_row(args.tiles, row, [&](int block) {
      if (mine())
        total.take(
            args.row_parts + int64_t(args.tiles.row_part(block, row)) * kPlanes * kPairBlockM + line % kPairBlockM,
            kPairBlockM, args.uniform);
    });
  }
  if (args.col_parts) {
    const int col = block_index() * kMergeLines / kPairBlockN, end = args.tiles.row_end_of(col);
    const auto owner_at = [&](int i) { return shared_memory() + uint32_t(4 * i); };
    int last = -1;
    for (int first = args.tiles.row_begin; first < end; first += kMergeThreads) {  // a thread finds the owner of a row
      const int row = first + thread_index();
      store_shared(owner_at(thread_index()), row < end ? args.tiles.owner(row, col) : -1);
      block_sync();
      for (int i = 0; i < kMergeThreads && first + i < end; i++) {
        const int block = load_shared<int>(owner_at(i));
        for (int warpgroup = 0; warpgroup < 2 && block != last; warpgroup++) {
          if (mine())
            total.take(
                args.col_parts + (int64_t(block) * 2 + warpgroup) * col_planes(args.uniform) * args.col_pitch + line,
                args.col_pitch, args.uniform);
        }
        last = block;
      }
      block_sync();
    }
  }
  const auto exchange = [&](int from) {
    return shared_memory() + uint32_t(from * kMergeLines + lane) * sizeof(LineTotal);
  };
  store_shared(exchange(warp), total);
  block_sync();
  if (warp != 0 || line >= args.lines) return;
  for (int other = 1; other < kMergeWarps; other++) total.take(load_shared<LineTotal>(exchange(other)));
  const bool nothing = total.top == kHidden;
  const float reference = nothing ? 0.0f : total.top;
  const auto below = [&](double sum, double n) { return float(reference - sum / n); };
  store_global(args.to.values + line, reference);
  store_global(args.to.values + args.lines + line, nothing ? 0.0f : total.rest);
  store_global(args.to.values + 2 * args.lines + line, total.count ? below(total.positives, total.count) : 0.0f);
  store_global(args.to.values + 3 * args.lines + line, args.uniform ? below(total.sum, args.others) : 0.0f);
  store_global(args.to.count + line, total.count);
}

static cudaError_t merge_statistics(const LineStatisticsArguments& args, cudaStream_t stream) {
  return launch(pair_statistics_kernel, (args.lines + kMergeLines - 1) / kMergeLines, kMergeThreads,
                kMergeWarps * kMergeLines * sizeof(LineTotal), stream, args);
}

}  // namespace fastfuse::cuda
