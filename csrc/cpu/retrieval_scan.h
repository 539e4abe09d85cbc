// All scores of a chunk of queries against a segment of keys, tile by tile. Keys are packed as they come by, once for
// each chunk of queries, in a buffer that stays in L2: no copy of all keys.
#pragma once

#include "cpu/arena.h"
#include "cpu/pair_products.h"
#include "fastfuse/retrieval.h"

namespace fastfuse::cpu::FASTFUSE_ISA {

// How N x M is split. More segments than one only where there are too few queries to keep the threads busy.
struct ScanPlan {
  int64_t chunk, chunks;      // queries a task, tasks
  int64_t segment, segments;  // strips of keys a task, tasks

  // `most`: queries a task may take at most, for the memory that it needs.
  ScanPlan(int64_t queries, int64_t keys, int64_t dim, int64_t most, int threads) {
    constexpr int64_t kElements = 1 << 17;  // of queries that stay in L2 beside a strip of keys
    const int64_t fitting = max_of<int64_t>(1, min_of(most, round_up(max_of<int64_t>(64, kElements / dim), kBlock)));
    chunks = ceil_div(queries, fitting);
    if (chunks < threads) chunks = min_of<int64_t>(threads, ceil_div(queries, 2 * kBlock));
    chunk = ceil_div(queries, chunks);
    chunks = ceil_div(queries, chunk);
    const int64_t strips = ceil_div(keys, kStrip);
    segments = chunks >= threads ? 1 : min_of(strips, ceil_div(int64_t(4) * threads, chunks));
    segment = ceil_div(strips, segments);
    segments = ceil_div(strips, segment);
  }
};

// Memory of one task.
template <class T>
struct ScanScratch {
  T *queries, *keys, *columns;         // [chunk][ld], [kStrip][ld], one strip
  float *query_inverse, *key_inverse;  // [chunk], [kStrip]
  float* tile;                         // [kBlock][kStrip]
  int64_t ld, dim;

  void take(Arena& arena, int64_t chunk) {
    queries = arena.take<T>(round_up(chunk, kStrip) * ld);
    keys = arena.take<T>(kStrip * ld);
    columns = arena.take<T>(strip_size<T>(dim));
    query_inverse = arena.take<float>(round_up(chunk, kStrip));
    key_inverse = arena.take<float>(kStrip);
    tile = arena.take<float>(kBlock * kStrip);
  }

  void pack_queries(const Features& x, bool normalize, int64_t first, int64_t count) const {
    for (int64_t r = 0; r < count; r += kStrip) {
      const Strip<T> strip{queries + r * ld, nullptr, nullptr, nullptr, query_inverse + r, nullptr, nullptr, ld};
      pack_strip(x, normalize, min_of(kStrip, count - r), [&](int64_t i) { return first + r + i; }, strip);
    }
  }

  template <class Index>
  void pack_keys(const Features& x, bool normalize, int64_t count, const Index& index) const {
    pack_strip(x, normalize, count, index,
               Strip<T>{keys, columns, nullptr, nullptr, key_inverse, nullptr, nullptr, ld});
  }

  // visit(query, col, score vector, lanes that are there) for queries [first, last) of the chunk and the packed keys.
  template <class Visit>
  FF_INLINE void scores(int64_t first, int64_t last, int64_t cols, const Visit& visit) const {
    for (int64_t r = first; r < last; r += kBlock) {
      const int64_t rows = min_of(kBlock, last - r);
      Products<T>::logits(queries + r * ld, ld, rows, columns, cols, dim, tile, nullptr);
      for (int64_t i = r; i < r + rows; i++) {
        const vf inverse = splat(query_inverse[i]);
        for (int64_t v = 0; v < cols; v += kLanes) {
          const vf score = load(tile + (i - r) * kStrip + v) * (load(key_inverse + v) * inverse);
          const uint32_t there = cols - v >= kLanes ? ~0u >> (32 - kLanes) : (1u << (cols - v)) - 1;
          visit(i, v, score, there);
        }
      }
    }
  }
};

// A task's memory, and what extra(arena) takes besides.
template <class T, class Extra>
FF_INLINE ScanScratch<T> with_scan_scratch(int64_t chunk, int64_t dim, const Extra& extra) {
  ScanScratch<T> scratch;
  scratch.ld = row_stride<T>(dim);
  scratch.dim = dim;
  with_arena([&](Arena& arena) {
    scratch.take(arena, chunk);
    extra(arena);
  });
  return scratch;
}

}  // namespace fastfuse::cpu::FASTFUSE_ISA
