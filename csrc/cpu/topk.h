// The k largest scores of each query. A heap holds the best so far, worst on top; a vector of scores is compared with
// its top first, so that almost all of them cost one comparison. Scores and indices are one integer that orders both:
// larger is a higher score, or the same at a lower index.
#pragma once

#include "cpu/retrieval_scan.h"

namespace fastfuse::cpu::FASTFUSE_ISA {

FF_INLINE uint64_t key_of(float score, int64_t index) {
  uint32_t bits;
  score += 0.0f;  // -0 is 0
  __builtin_memcpy(&bits, &score, sizeof bits);
  bits ^= bits >> 31 ? 0xffffffffu : 0x80000000u;
  return uint64_t(bits) << 32 | uint32_t(~uint32_t(index));
}
FF_INLINE float score_of(uint64_t key) {
  uint32_t bits = uint32_t(key >> 32);
  bits ^= bits >> 31 ? 0x80000000u : 0xffffffffu;
  float score;
  __builtin_memcpy(&score, &bits, sizeof score);
  return score;
}
FF_INLINE int64_t index_of(uint64_t key) { return int64_t(uint32_t(~uint32_t(key))); }

// Restores the heap heap[0..size), smallest on top, after heap[i] has grown.
inline void sift_down(uint64_t* heap, int64_t size, int64_t i) {
  const uint64_t key = heap[i];
  for (;;) {
    int64_t child = 2 * i + 1;
    if (child >= size) break;
    if (child + 1 < size && heap[child + 1] < heap[child]) child++;
    if (heap[child] >= key) break;
    heap[i] = heap[child];
    i = child;
  }
  heap[i] = key;
}

// The k best keys of one query; `count` of them so far.
struct Best {
  uint64_t* heap;  // [k]
  int64_t k, count = 0;

  void push(uint64_t key) {
    if (count < k) {
      heap[count++] = key;
      if (count == k) {
        for (int64_t i = k / 2; i-- > 0;) sift_down(heap, k, i);
      }
    } else if (key > heap[0]) {
      heap[0] = key;
      sift_down(heap, k, 0);
    }
  }
  // What a later score has to beat; NaN, which nothing is <= to, while there is room.
  float threshold() const { return count < k ? __builtin_nanf("") : score_of(heap[0]); }
};

// Sorts a full heap, largest first.
inline void sort_heap(uint64_t* heap, int64_t size) {
  while (size-- > 1) {
    const uint64_t smallest = heap[0];
    heap[0] = heap[size];
    heap[size] = smallest;
    sift_down(heap, size, 0);
  }
}

template <class T>
void topk_task(const TopkParams& p, const ScanPlan& plan, int64_t chunk, int64_t segment, Best* found) {
  [[maybe_unused]] typename Products<T>::Session session;
  const int64_t first = chunk * plan.chunk, count = min_of(plan.chunk, p.queries.rows - first);
  float* thresholds;  // [chunk]
  const ScanScratch<T> scratch = with_scan_scratch<T>(
      plan.chunk, p.queries.dim, [&](Arena& arena) { thresholds = arena.take<float>(plan.chunk); });
  scratch.pack_queries(p.queries, p.normalize, first, count);
  for (int64_t i = 0; i < count; i++) thresholds[i] = found[i].threshold();
  const int64_t strips = ceil_div(p.keys.rows, kStrip);
  for (int64_t s = segment * plan.segment; s < min_of(strips, (segment + 1) * plan.segment); s++) {
    const int64_t key = s * kStrip, cols = min_of(kStrip, p.keys.rows - key);
    scratch.pack_keys(p.keys, p.normalize, cols, [key](int64_t r) { return key + r; });
    scratch.scores(0, count, cols, [&](int64_t i, int64_t v, vf score, uint32_t there) {
      uint32_t bits = there & ~lane_bits((vi)(score <= splat(thresholds[i])));
      if (!bits) return;
      for (; bits; bits &= bits - 1) {
        const int l = __builtin_ctz(bits);
        found[i].push(key_of(score[l], key + v + l));
      }
      thresholds[i] = found[i].threshold();
    });
  }
}

template <class T>
void topk(const TopkParams& p, const ThreadPool& pool) {
  const int64_t n = p.queries.rows;
  const ScanPlan plan(n, p.keys.rows, p.queries.dim, n, pool.threads);
  Buffer<uint64_t> keys(plan.segments * n * p.k);
  Buffer<Best> found(plan.segments * n);  // [segments][N]
  for (int64_t i = 0; i < plan.segments * n; i++) found.get()[i] = {keys.get() + i * p.k, p.k, 0};
  for_each(pool, plan.chunks * plan.segments, [&](int64_t task) {
    const int64_t chunk = task / plan.segments, segment = task % plan.segments;
    topk_task<T>(p, plan, chunk, segment, found.get() + segment * n + chunk * plan.chunk);
  });
  for_each(pool, ceil_div(n, kBlock), [&](int64_t block) {
    for (int64_t i = block * kBlock; i < min_of(n, (block + 1) * kBlock); i++) {
      Best& best = found.get()[i];
      for (int64_t segment = 1; segment < plan.segments; segment++) {
        const Best& other = found.get()[segment * n + i];
        for (int64_t c = 0; c < other.count; c++) best.push(other.heap[c]);
      }
      sort_heap(best.heap, p.k);
      for (int64_t c = 0; c < p.k; c++) {
        p.scores[i * p.k + c] = score_of(best.heap[c]);
        p.indices[i * p.k + c] = index_of(best.heap[c]);
      }
    }
  });
}

}  // namespace fastfuse::cpu::FASTFUSE_ISA
