// Tiles of queries.
//
// All query heads that share a key head are stacked: row r = g Sq + i is query i of head hk (H / Hk) + g. So a few
// queries of many heads fill a tile, and the [B, H, Sq, *] contiguous results of a tile are one run of rows.
#pragma once

#include "cuda/hopper.h"
#include "fastfuse/cuda_attention.h"

namespace fastfuse::cuda {

using namespace hopper;

FF_DEVICE int smaller(int a, int b) { return a < b ? a : b; }
FF_DEVICE int larger(int a, int b) { return a > b ? a : b; }

// Whether scores are more than products times a positive number: kernels have a second program for that.
inline bool is_general(const AttentionProblem& p) {
  return p.softcap != 0 || p.bias || p.dropout_p > 0 || !(p.scale > 0);
}

// Work w of [0, batch * blocks * kv_heads): heads innermost.
struct QueryTile {
  int batch, kv_head;
  int first;               // row of the stack
  int key_begin, key_end;  // no row of the tile sees a key outside; key_begin is a multiple of 8
};

// schedule: what attention_schedule.cuh wrote, or null where every row sees all keys.
FF_DEVICE QueryTile query_tile(const AttentionProblem& p, const int32_t* schedule, int blocks, int block_rows,
                               int work) {
  const int place = work / p.kv_heads, tiles = p.batch * blocks;
  const int tile = schedule ? load_global(schedule + 2 * tiles + place) : place;
  QueryTile t;
  t.batch = tile / blocks;
  t.kv_head = work % p.kv_heads;
  t.first = tile % blocks * block_rows;
  t.key_begin = schedule ? load_global(schedule + 2 * tile) : 0;
  t.key_end = schedule ? load_global(schedule + 2 * tile + 1) : p.seq_k;
  return t;
}

// A row of a tile and the keys that it sees. Rows past the stack see everything and are not written.
struct QueryRow {
  bool exists;
  int row;  // of the stack
  int head, query;
  int lo, hi;  // sees keys lo <= j < hi, within [0, Sk]
};

FF_DEVICE QueryRow query_row(const AttentionProblem& p, const QueryTile& t, int row) {
  const int group = p.heads / p.kv_heads;
  QueryRow r;
  r.row = row;
  r.exists = row < group * p.seq_q;
  r.head = t.kv_head * group + (r.exists ? row / p.seq_q : 0);
  r.query = r.exists ? row % p.seq_q : 0;
  r.lo = 0;
  r.hi = p.seq_k;
  if (p.lo && r.exists) {
    const int64_t at = t.batch * p.span_stride[0] + r.query * p.span_stride[1];
    const int lo = load_global(p.lo + at), hi = load_global(p.hi + at);
    r.lo = lo > 0 ? lo : 0;
    r.hi = hi < p.seq_k ? hi : p.seq_k;
  }
  return r;
}

}  // namespace fastfuse::cuda
