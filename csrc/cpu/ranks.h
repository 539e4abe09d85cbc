// Rank of each query's best positive: how many keys score higher, or the same at a lower index.
#pragma once

#include "cpu/retrieval_scan.h"

namespace fastfuse::cpu::FASTFUSE_ISA {

struct Positive {
  float score;
  int64_t index;  // -1: the query has none
};

// The best positives of the packed queries. Positives are gathered into strips and go through the same product as all
// keys, so that their scores are the same to the last bit.
template <class T>
void find_best_positives(const RanksParams& p, const ScanScratch<T>& scratch, int64_t first, int64_t count,
                         int32_t* owner, int64_t* index, Positive* best) {
  for (int64_t i = 0; i < count; i++) best[i] = {0.0f, -1};
  int64_t gathered = 0;
  const auto flush = [&] {
    if (!gathered) return;
    scratch.pack_keys(p.keys, p.normalize, gathered, [&](int64_t r) { return index[r]; });
    scratch.scores(owner[0], owner[gathered - 1] + 1, gathered, [&](int64_t i, int64_t v, vf score, uint32_t there) {
      for (uint32_t bits = there; bits; bits &= bits - 1) {
        const int l = __builtin_ctz(bits);
        if (owner[v + l] != i) continue;
        Positive& b = best[i];
        const int64_t j = index[v + l];
        if (b.index < 0 || score[l] > b.score || (score[l] == b.score && j < b.index)) b = {score[l], j};
      }
    });
    gathered = 0;
  };
  for (int64_t i = 0; i < count; i++) {
    for (int64_t c = p.first[first + i]; c < p.last[first + i]; c++) {
      if (p.positives[c] < 0) continue;
      owner[gathered] = int32_t(i);
      index[gathered] = p.positives[c];
      if (++gathered == kStrip) flush();
    }
  }
  flush();
}

template <class T>
void ranks_task(const RanksParams& p, const ScanPlan& plan, int64_t chunk, int64_t segment, int64_t* above) {
  [[maybe_unused]] typename Products<T>::Session session;
  const int64_t first = chunk * plan.chunk, count = min_of(plan.chunk, p.queries.rows - first);
  Positive* best;
  int32_t* owner;
  int64_t* index;
  const ScanScratch<T> scratch = with_scan_scratch<T>(plan.chunk, p.queries.dim, [&](Arena& arena) {
    best = arena.take<Positive>(plan.chunk);
    owner = arena.take<int32_t>(kStrip);
    index = arena.take<int64_t>(kStrip);
  });
  scratch.pack_queries(p.queries, p.normalize, first, count);
  find_best_positives(p, scratch, first, count, owner, index, best);
  for (int64_t i = 0; i < count; i++) above[i] = 0;
  const int64_t strips = ceil_div(p.keys.rows, kStrip);
  for (int64_t s = segment * plan.segment; s < min_of(strips, (segment + 1) * plan.segment); s++) {
    const int64_t key = s * kStrip, cols = min_of(kStrip, p.keys.rows - key);
    scratch.pack_keys(p.keys, p.normalize, cols, [key](int64_t r) { return key + r; });
    scratch.scores(0, count, cols, [&](int64_t i, int64_t v, vf score, uint32_t there) {
      const vf own = splat(best[i].score);
      above[i] += __builtin_popcount(there & lane_bits((vi)(score > own)));
      for (uint32_t bits = there & lane_bits((vi)(score == own)); bits; bits &= bits - 1) {
        above[i] += key + v + __builtin_ctz(bits) < best[i].index;
      }
    });
  }
  for (int64_t i = 0; i < count; i++) {
    if (best[i].index < 0) above[i] = segment ? 0 : p.keys.rows;
  }
}

template <class T>
void ranks(const RanksParams& p, const ThreadPool& pool) {
  const int64_t n = p.queries.rows;
  const ScanPlan plan(n, p.keys.rows, p.queries.dim, n, pool.threads);
  Buffer<int64_t> above(plan.segments * n);  // [segments][N]
  for_each(pool, plan.chunks * plan.segments, [&](int64_t task) {
    const int64_t chunk = task / plan.segments, segment = task % plan.segments;
    ranks_task<T>(p, plan, chunk, segment, above.get() + segment * n + chunk * plan.chunk);
  });
  for (int64_t i = 0; i < n; i++) {
    p.ranks[i] = 0;
    for (int64_t segment = 0; segment < plan.segments; segment++) p.ranks[i] += above.get()[segment * n + i];
  }
}

}  // namespace fastfuse::cpu::FASTFUSE_ISA
