// A tile of queries: up to kTileQ rows of one (batch, key head), one a lane.
//
// All query heads that share a key head are stacked: row r = g * Sq + i is query i of head hk * (H / Hk) + g. So few
// queries of many heads still fill the lanes, and [B, H, Sq, *] contiguous results of a tile are one contiguous run of
// rows.
#pragma once

#include "cpu/arena.h"
#include "cpu/attention_engine.h"
#include "fastfuse/attention.h"
#include "fastfuse/cpu.h"

namespace fastfuse::cpu::FASTFUSE_ISA {

struct QueryTile {
  int64_t batch, row;  // row: the first lane's, in [0, B * H * Sq) of the contiguous results
  int rows, lanes;     // lanes: rows rounded up to kLanes
  bool one_head;
  int head[kTileQ], query[kTileQ];  // of each lane; lanes past `rows` repeat the last one

  int64_t key_begin, key_end;  // union of the lanes' intervals: no other key is visible
  int64_t all_begin, all_end;  // keys in here are visible to every lane
  alignas(64) int32_t lo[kTileQ], hi[kTileQ];
};

struct Stack {
  int64_t group, rows;  // query heads per key head, rows of a (batch, key head)
  explicit Stack(const AttentionProblem& p) : group(p.heads / p.kv_heads), rows(group * p.seq_q) {}
};

inline void set_key_range(const AttentionProblem& p, QueryTile& t) {
  t.key_begin = t.all_begin = 0;
  t.key_end = t.all_end = p.seq_k;
  if (!p.lo) return;
  t.key_begin = p.seq_k;
  t.key_end = 0;
  const int32_t seq_k = int32_t(p.seq_k);
  for (int lane = 0; lane < t.lanes; lane++) {
    const int64_t at = t.batch * p.span_stride[0] + t.query[lane] * p.span_stride[1];
    const int32_t lo = max_of(p.lo[at], 0), hi = min_of(p.hi[at], seq_k);
    t.lo[lane] = lo;
    t.hi[lane] = hi;
    t.all_begin = max_of<int64_t>(t.all_begin, lo);
    t.all_end = min_of<int64_t>(t.all_end, hi);
    if (lo < hi) {
      t.key_begin = min_of<int64_t>(t.key_begin, lo);
      t.key_end = max_of<int64_t>(t.key_end, hi);
    }
  }
}

// Rows [first, first + rows) of the stack of (batch, kv_head).
inline void set_tile(const AttentionProblem& p, int64_t batch, int64_t kv_head, int64_t first, int64_t rows,
                     QueryTile& t) {
  const Stack stack(p);
  t.batch = batch;
  t.row = (batch * p.kv_heads + kv_head) * stack.rows + first;
  t.rows = int(rows);
  t.lanes = int(round_up(rows, kLanes));
  int head = int(kv_head * stack.group + first / p.seq_q), query = int(first % p.seq_q);
  t.one_head = query + rows <= p.seq_q;
  for (int lane = 0; lane < t.lanes; lane++) {
    t.head[lane] = head;
    t.query[lane] = query;
    if (lane + 1 < rows && ++query == p.seq_q) {
      query = 0;
      head++;
    }
  }
  set_key_range(p, t);
}

// The tile's rows of a tensor at one stride: in place where it has one, else copied to scratch.
template <class T>
struct TileRows {
  const T* data;
  int64_t stride;
};

template <class T>
FF_INLINE const T* row_of(const Rows& x, int64_t batch, int64_t head, int64_t row) {
  return static_cast<const T*>(x.data) + batch * x.stride[0] + head * x.stride[1] + row * x.stride[2];
}

template <class T>
TileRows<T> tile_rows(const Rows& x, int64_t dim, const QueryTile& t, T* scratch) {  // scratch: [kTileQ][dim]
  if (t.one_head) return {row_of<T>(x, t.batch, t.head[0], t.query[0]), x.stride[2]};
  for (int lane = 0; lane < t.rows; lane++) {
    __builtin_memcpy(scratch + lane * dim, row_of<T>(x, t.batch, t.head[lane], t.query[lane]), dim * sizeof(T));
  }
  return {scratch, dim};
}

// `rows` rows of the stack of (batch, kv_head) from `row` on, to be asked for while another tile is worked on.
template <class T>
void feed_stack(const AttentionProblem& p, const Rows& x, int64_t batch, int64_t kv_head, int64_t row, int64_t rows,
                int64_t dim, Feed& feed) {
  const int64_t last = min_of(row + rows, Stack(p).rows), first_head = kv_head * Stack(p).group;
  for (int64_t next; row < last && !feed.full(); row = next) {
    next = min_of(round_up(row + 1, p.seq_q), last);
    feed.add(row_of<T>(x, batch, first_head + row / p.seq_q, row % p.seq_q), x.stride[2], dim, next - row);
  }
}

// Scratch for the weights of a tile; null where they overwrite their scores.
template <class Engine>
typename Engine::Packed* take_weights(Arena& arena) {
  const int64_t size = Engine::weights_scratch();
  return size ? arena.take<typename Engine::Packed>(size) : nullptr;
}

// Per-lane copy of a value that each head has.
inline void head_values(const float* values, const QueryTile& t, float* lanes) {
  for (int lane = 0; lane < t.lanes; lane++) lanes[lane] = values[t.head[lane]];
}

// One vector of the lse pair; +inf, which makes p = 0, for lanes that see nothing and past the tile's rows.
inline void load_lse(const AttentionProblem& p, const float* lse, const QueryTile& t, int lane, float* high,
                     float* low) {
  const float* rest = lse + p.batch * p.heads * p.seq_q;
  for (int i = 0; i < kLanes; i++) {
    const bool empty = lane + i >= t.rows || lse[t.row + lane + i] == -kInf;
    high[i] = empty ? kInf : lse[t.row + lane + i];
    low[i] = empty ? 0 : rest[t.row + lane + i];
  }
}

// Keys of a tile, at most kTileK: 64, or as many more or less as make the tiles even. Else a square of patches and a class
// token, 257 or 577, would leave a tile of one key.
template <class Engine>
int64_t tile_keys(const AttentionProblem& p) {
  const int64_t tiles = max_of<int64_t>(ceil_div(p.seq_k - (Engine::kTileK - 64), 64), 1);
  return max_of<int64_t>(round_up(ceil_div(p.seq_k, tiles), Engine::kKeyGrain), 1);
}

// A tile of keys [begin, end) on the grid of tile_keys, cut to what the query tile sees; begin stays that of a tile or a
// multiple of 32.
struct KeyRange {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

FF_INLINE KeyRange visible_keys(const QueryTile& t, int64_t begin, int64_t end) {
  return {max_of(begin, t.key_begin & ~int64_t(31)), min_of(end, t.key_end)};
}

// Whether these are all keys that the tile's queries see.
FF_INLINE bool has_all_keys(const QueryTile& t, KeyRange keys) {
  return keys.begin <= t.key_begin && keys.end == t.key_end;
}

}  // namespace fastfuse::cpu::FASTFUSE_ISA
